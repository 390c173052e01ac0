"""`edgevlm demo`: the whole chain on the built-in model, in a temporary folder, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from edgevlm.build.convert import Built
    from edgevlm.drift.demo import DemoRow
    from edgevlm.drift.prompts import Prompt

_N_SHOWN_ANSWERS = 4


def demo(
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Run the whole chain on the built-in model `shapes`, offline."""
    from pathlib import Path
    from tempfile import TemporaryDirectory
    from time import perf_counter

    from edgevlm.build.resolve import built_in_folder
    from edgevlm.cli import console
    from edgevlm.drift.demo import run_demo

    start = perf_counter()
    answers: list[tuple[Prompt, str]] = []

    def show_built(built: Built) -> None:
        for entry in built.written:
            what = f"{entry.name}: {entry.bits_per_weight:.2f} bits/weight"
            console.note(f"wrote {what}", quiet=silent)

    silent = json or quiet
    console.note("shapes: a VLM of 10 M parameters (Qwen3-VL), built in", quiet=silent)
    with TemporaryDirectory(prefix="edgevlm-demo-") as folder:
        rows = run_demo(
            Path(folder) / "shapes",
            n_threads=threads,
            progress=console.progress_for(json=json, quiet=quiet),
            on_built=show_built,
            on_answer=lambda prompt, answer: answers.append((prompt, answer)),
        )
    seconds = perf_counter() - start
    if json:
        console.print_json({"rows": [_as_json(row) for row in rows], "seconds": round(seconds, 2)})
        return
    _show_answers(answers[:_N_SHOWN_ANSWERS], quiet=quiet)
    _show_rows(rows)
    console.note(f"\ndone in {seconds:.1f} s. Type next:", quiet=quiet)
    _show_next(built_in_folder(), quiet=quiet)


def _show_answers(answers: list[tuple[Prompt, str]], *, quiet: bool) -> None:
    from edgevlm.cli import console

    for prompt, answer in answers:
        console.note(f"{prompt.paths[0]}  {prompt.prompt}  ->  {answer}", quiet=quiet)


def _show_rows(rows: list[DemoRow]) -> None:
    from edgevlm.cli import console
    from edgevlm.files import human_bytes

    console.table(
        ("level", "text model", "mmproj", "bits/weight", "right", "tok/s"),
        [
            (
                row.text.level,
                human_bytes(row.text.n_bytes),
                human_bytes(row.mmproj.n_bytes),
                f"{row.text.bits_per_weight:.2f}",
                f"{row.score.n_right}/{row.score.n_prompts}",
                f"{row.score.decode_tok_per_sec:.0f}" if row.score.decode_tok_per_sec else "-",
            )
            for row in rows
        ],
        right=(1, 2, 3, 4, 5),
    )


def _show_next(folder: Path, *, quiet: bool) -> None:
    import os
    import shutil
    import sys

    from edgevlm.cli import console

    # `make demo` installs into .venv, which is on nobody's PATH.
    script = os.path.relpath(sys.argv[0])
    if script.endswith("__main__.py"):
        script = "python -m edgevlm"
    program = "edgevlm" if shutil.which("edgevlm") else script
    image = os.path.relpath(folder / "images" / "000.png")
    for arguments in (
        f'chat {image} -m shapes -p "Describe the image."',
        "convert YOUR_CHECKPOINT --level Q4_K_M",
        "chat YOUR_IMAGE -m YOUR_MODEL",
    ):
        console.note(f"  {program} {arguments}", quiet=quiet)


def _as_json(row: DemoRow) -> dict[str, object]:
    speed = row.score.decode_tok_per_sec
    return {
        "level": row.text.level,
        "text_n_bytes": row.text.n_bytes,
        "mmproj_n_bytes": row.mmproj.n_bytes,
        "bits_per_weight": row.text.bits_per_weight,
        "n_right": row.score.n_right,
        "n_prompts": row.score.n_prompts,
        "right_by_kind": row.score.right_by_kind,
        "tok_per_sec": round(speed, 1) if speed else None,
        "mean_ttft_ms": round(row.score.mean_ttft_ms, 1),
    }
