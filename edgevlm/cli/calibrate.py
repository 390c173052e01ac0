"""`edgevlm calibrate`: an importance matrix from images, prompts and the model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgevlm.calibrate.run import Calibrated, Sample


def calibrate(
    model: options.ModelArgument = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Folder of images like those the model will see; each is asked about three times, "
            "or what --prompts asks.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE.jsonl",
            help='Questions in place of those, a line each: {"image": "a.png", "prompt": "..."}.',
            show_default=False,
        ),
    ] = None,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers", help="Lead the model along the prompts' answers, not along its own."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Importance matrix to write (default: NAME-imatrix.gguf in the current folder).",
            show_default=False,
        ),
    ] = None,
    image_weight: Annotated[
        float,
        typer.Option(
            "--image-weight",
            min=0,
            max=1,
            help="Weight of visual tokens against text in what the text model's channels count.",
        ),
    ] = 0.25,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of an answer at most.")
    ] = 64,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")
    ] = False,
    mmproj: options.MmprojOption = None,
    threads: options.ThreadsOption = None,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Collect an importance matrix that has seen images.

    Runs the 16-bit model over images, questions and its own answers, on the CPU, and sums up how
    much goes through each input channel of each matrix, of the text model, the vision tower and the
    projector. `edgevlm quantize --imatrix FILE` and llama-quantize take the file.
    """
    from functools import partial
    from time import perf_counter

    from edgevlm.build.resolve import open_source
    from edgevlm.calibrate.run import Options
    from edgevlm.calibrate.run import calibrate as collect
    from edgevlm.cli import console
    from edgevlm.errors import OutputExistsError, QuantizationError

    start = perf_counter()
    progress = console.progress_for(json=json, quiet=quiet)
    note = partial(console.note, quiet=quiet or json)
    directory, named = open_source(model, progress=progress, note=note)
    name = directory.manifest.name if directory.manifest else directory.folder.resolve().name
    text, projector = directory.baseline("text"), directory.baseline("mmproj")
    text_path = named or (text.path if text else None)
    mmproj_path = mmproj or (projector.path if projector else None)
    if text_path is None or mmproj_path is None:
        missing = "text model" if text_path is None else "projector"
        raise QuantizationError(
            f"`{directory.folder}` has no 16-bit {missing} to calibrate",
            hint="`edgevlm convert CHECKPOINT` writes both",
        )
    samples = _samples(name, images=images, prompts=prompts, answers=answers)
    path = out or Path(f"{name}-imatrix.gguf")
    if path.exists() and not (force or resume):
        raise OutputExistsError(
            f"`{path}` exists already", hint="--resume goes on with it, --force replaces it"
        )
    result = collect(
        text_path,
        mmproj_path,
        samples,
        out=path,
        options=Options(
            image_weight=image_weight, max_tokens=max_tokens, resume=resume, n_threads=threads
        ),
        progress=progress,
        note=note,
    )
    _show(result, path, seconds=perf_counter() - start, json=json, quiet=quiet)


def _samples(
    name: str, *, images: Path | None, prompts: Path | None, answers: bool
) -> Sequence[Sample]:
    from edgevlm.calibrate.run import Sample
    from edgevlm.drift.prompts import STOCK_PROMPTS, built_in_prompts, read_prompts
    from edgevlm.errors import PromptError
    from edgevlm.runtime.image_folder import image_paths

    if images is not None and prompts is None:
        if answers:
            raise typer.BadParameter("--answers are those of --prompts")
        paths = image_paths(images)
        return [Sample(image=path, prompt=prompt) for path in paths for prompt in STOCK_PROMPTS]
    if prompts is None:
        prompts = built_in_prompts(name, purpose="calibrate")
    read = read_prompts(prompts)
    if answers and any(one.answer is None for one in read):
        raise PromptError(f"`{prompts}` has prompts without an answer", hint="see --answers")
    if any(len(one.paths) > 1 or not (one.paths or images) for one in read):
        raise PromptError(
            f"`{prompts}` has prompts about no image, or several",
            hint="calibrate takes one image a prompt; with --images DIR, prompts that name none"
            " are asked about every image of DIR",
        )
    folder = prompts.parent if images is None else images
    shown = image_paths(images) if images is not None else []
    return [
        Sample(image=path, prompt=one.prompt, answer=one.answer if answers else None)
        for one in read
        for path in ([folder / one.paths[0]] if one.paths else shown)
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _show(result: Calibrated, path: Path, *, seconds: float, json: bool, quiet: bool) -> None:
    from dataclasses import asdict

    from edgevlm.cli import console
    from edgevlm.files import human_bytes
    from edgevlm.native.peak_memory import peak_memory_n_bytes

    peak = peak_memory_n_bytes()
    if json:
        console.print_json(
            {
                "file": str(path),
                **asdict(result),
                "seconds": round(seconds, 3),
                "peak_rss_bytes": peak,
            }
        )
        return
    rows = ", ".join(f"{n_rows:,} {kind}" for kind, n_rows in sorted(result.n_rows.items()))
    before = f" after {result.n_before} of an earlier run" if result.n_before else ""
    console.out().print(f"{result.n_run} prompts{before}: {rows} rows", markup=False)
    if result.skipped:
        console.out().print(f"{_counted(len(result.skipped), 'image')} left out", markup=False)
    if result.unseen:
        some = ", ".join(result.unseen[:3])
        console.out().print(
            f"{_counted(len(result.unseen), 'expert')} saw no token and will count evenly: {some}"
            + (" ..." if len(result.unseen) > 3 else ""),
            markup=False,
        )
    console.note(
        f"wrote {path}: {result.n_matrices} matrices, in {seconds:.1f} s, peak memory"
        f" {human_bytes(peak)}\nnext: edgevlm quantize MODEL --level LEVEL --imatrix {path}",
        quiet=quiet,
    )
