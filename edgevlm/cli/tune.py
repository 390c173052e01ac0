"""`edgevlm tune`: the projector type and the number of threads that are fastest on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgevlm.drift.tune import Measured, ProjectorRow
    from edgevlm.drift.tuned_profile import Choice
    from edgevlm.model_dir import ModelDir
    from edgevlm.runtime.layout import Pixels

# Of the level, where --out does not name the profile: the model's name stands before it in files.
_NAME = "tuned"
_N_IMAGES = 2
_SIDE = 512


def tune(
    model: options.ModelArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.toml",
            help="Profile to write (default: NAME-tuned.toml in the current folder).",
            show_default=False,
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="Level that the profile extends (default: the newest quantized one, or Q4_K_M).",
            show_default=False,
        ),
    ] = None,
    min_cosine: Annotated[
        float,
        typer.Option(
            "--min-cosine",
            min=-1,
            max=1,
            help="Least cosine of the worst visual token with the 16-bit projector's.",
        ),
    ] = 0.99,
    mmproj_levels: Annotated[
        str,
        typer.Option(
            "--mmproj-levels",
            metavar="LEVEL,...",
            help="Levels of the projector to try (default: F16 to Q4_0).",
            show_default=False,
        ),
    ] = "",
    levels: Annotated[
        str,
        typer.Option(
            "--levels",
            metavar="LEVEL,...",
            help="Levels of the text model to time; what is missing is made for it (default: "
            "those that are there, and Q8_0 and Q4_K_M where none is quantized).",
            show_default=False,
        ),
    ] = "",
    threads: Annotated[
        str,
        typer.Option(
            "--threads",
            metavar="N,...",
            help="Numbers of threads to try (default: 1, 2, 4 ... and all cores).",
            show_default=False,
        ),
    ] = "",
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Folder of images like yours, two of which are tried (default: drawn ones).",
            show_default=False,
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    gpu_layers: options.GpuLayersOption = None,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Find the fastest projector type and number of threads on this machine.

    Encodes images with the projector in each type, and reads and writes text at each level of the
    text model, with each number of threads. Writes a profile for `edgevlm quantize --level` with
    the fastest type whose embeddings stay within --min-cosine.
    """
    from functools import partial

    from edgevlm.build.cache import scratch_folder
    from edgevlm.build.resolve import open_source
    from edgevlm.cli import console
    from edgevlm.drift.tune import MMPROJ_TYPES, TuneOptions, measure, usual_thread_counts
    from edgevlm.drift.tuned_profile import choose, plain_name, write_profile
    from edgevlm.errors import OutputExistsError

    progress = console.progress_for(json=json, quiet=quiet)
    note = partial(console.note, quiet=quiet or json)
    directory, text = open_source(model, progress=progress, note=note)
    name = directory.manifest.name if directory.manifest else directory.folder.resolve().name
    path = out or Path(f"{plain_name(name)}-{_NAME}.toml")
    if path.suffix != ".toml":
        raise typer.BadParameter(f"--out {path}: a profile's name ends in .toml")
    # Before minutes are spent.
    if path.exists() and not force:
        raise OutputExistsError(f"`{path}` exists already", hint="give --force to replace it")
    extended = _extended(level, path) if level else None
    wanted = TuneOptions(
        images=_images(images, directory),
        mmproj_types=_listed(mmproj_levels) or MMPROJ_TYPES,
        levels=_listed(levels),
        thread_counts=_thread_counts(threads) or usual_thread_counts(),
        device=device,
        gpu_layers=gpu_layers,
    )
    with scratch_folder("tune") as folder:
        measured = measure(directory, wanted, folder=folder, text=text, progress=progress)
    base = extended or _base(directory, measured)
    choice = choose(measured, level=base, min_cosine=min_cosine)
    machine = _machine()
    write_profile(
        path,
        name=plain_name(path.stem) if out else _NAME,
        level=base,
        choice=choice,
        machine=machine,
        force=force,
    )
    if json:
        console.print_json(
            _document(measured, choice, name=name, machine=machine, path=path, level=base)
        )
        return
    _show(measured, choice, min_cosine=min_cosine)
    note(f"measured on {machine}; what else runs on it is in the numbers")
    note(f"next: edgevlm quantize {model or directory.folder} --level {path}")
    note(f"      edgevlm chat IMAGE -m {model or directory.folder} --threads {choice.n_threads}")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _thread_counts(text: str) -> tuple[int, ...]:
    counts = _listed(text)
    if any(not count.isdecimal() or not 1 <= int(count) <= 1024 for count in counts):
        raise typer.BadParameter(f"--threads {text!r}: numbers from 1 to 1024, such as 1,2,4")
    return tuple(dict.fromkeys(map(int, counts)))


def _extended(level: str, path: Path) -> str:
    """Return the level as `extends` writes it."""
    from edgevlm.quantize.profile_file import load_profile

    profile = load_profile(level)
    if not level.endswith(".toml"):
        return profile.name
    if Path(level).absolute().parent != path.absolute().parent:
        raise typer.BadParameter(f"--level {level}: write the profile beside it with --out")
    return Path(level).name


def _base(directory: ModelDir, measured: Measured) -> str:
    """Return the newest quantized level that is a known one, else the smallest measured."""
    from edgevlm.model_dir import FLOAT_LEVELS
    from edgevlm.quantize.profile_file import profile_names

    known = set(profile_names())
    newest = [file.level for file in directory.of_role("text")]
    others = [row.level for row in sorted(measured.texts, key=lambda row: row.n_bytes)]
    found = [name for name in (*newest, *others) if name in known and name not in FLOAT_LEVELS]
    return found[0] if found else "Q4_K_M"


def _images(folder: Path | None, directory: ModelDir) -> Sequence[Pixels]:
    """Return two images: the user's, or drawn ones as large as the tower takes them."""
    from edgevlm.build.resolve import built_in_folder
    from edgevlm.drift.images import read_images

    if folder is not None:
        return read_images(folder, n_most=_N_IMAGES)
    side = _SIDE
    for file in directory.of_role("mmproj"):
        side = min(side, _image_side(file.path) or side)
    return read_images(built_in_folder() / "images", n_most=_N_IMAGES, side=side)


def _image_side(mmproj: Path) -> int:
    from edgevlm.gguf_file import read_gguf

    entry = read_gguf(mmproj).metadata.get("clip.vision.image_size")
    value = entry.value if entry is not None else 0
    return value if isinstance(value, int) else 0


def _machine() -> str:
    import platform

    from edgevlm.native.system import read_processor

    return read_processor().name or platform.machine() or "this machine"


def _show(measured: Measured, choice: Choice, *, min_cosine: float) -> None:
    from edgevlm.cli import console
    from edgevlm.files import human_bytes

    counts = list(choice.seconds)
    console.table(
        ("projector", "size", *(f"{_threads(n)}, ms" for n in counts), "mean cosine", "lowest"),
        [
            (
                row.level,
                human_bytes(row.n_bytes),
                *(f"{row.seconds[count] * 1e3:.1f}" for count in counts),
                f"{row.mean_cosine:.5f}",
                f"{row.min_cosine:.5f}" + ("" if row.min_cosine >= min_cosine else "  below"),
            )
            for row in measured.projectors
            if row.seconds
        ],
        right=range(1, len(counts) + 4),
    )
    console.out().print()
    console.table(
        ("text model", "size", *(f"{_threads(n)}, tok/s in, out" for n in counts)),
        [
            (
                row.level,
                human_bytes(row.n_bytes),
                *(
                    f"{row.speeds[count].prefill:.0f}, {row.speeds[count].decode:.1f}"
                    for count in counts
                ),
            )
            for row in measured.texts
            if row.speeds
        ],
        right=range(1, len(counts) + 2),
    )
    for row in (*measured.projectors, *measured.texts):
        if row.problem:
            console.out().print(f"{row.level}: {row.problem}", markup=False, soft_wrap=True)
    console.out().print()
    fastest: ProjectorRow = choice.projector
    console.out().print(
        f"projector {fastest.level}, --threads {choice.n_threads}: an answer about one image in "
        f"{choice.seconds[choice.n_threads]:.2f} s at {choice.text.level}",
        style="bold",
        soft_wrap=True,
    )


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def _document(
    measured: Measured, choice: Choice, *, name: str, machine: str, path: Path, level: str
) -> Mapping[str, object]:
    return {
        "model": name,
        "machine": machine,
        "profile": str(path),
        "extends": level,
        "mmproj_level": choice.projector.level,
        "n_threads": choice.n_threads,
        "answer_seconds": {str(count): s for count, s in choice.seconds.items()},
        "n_visual_tokens": measured.n_visual_tokens,
        "projectors": [
            {
                "level": row.level,
                "n_bytes": row.n_bytes,
                "encode_ms": {str(count): s * 1e3 for count, s in row.seconds.items()},
                "mean_cosine": row.mean_cosine,
                "min_cosine": row.min_cosine,
                "problem": row.problem,
            }
            for row in measured.projectors
        ],
        "texts": [
            {
                "level": row.level,
                "n_bytes": row.n_bytes,
                "prefill_tok_per_sec": {str(n): s.prefill for n, s in row.speeds.items()},
                "decode_tok_per_sec": {str(n): s.decode for n, s in row.speeds.items()},
                "problem": row.problem,
            }
            for row in measured.texts
        ],
    }
