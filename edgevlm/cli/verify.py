"""`edgevlm verify`: is the converted model the one that transformers runs?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgevlm.build.convert import Built
    from edgevlm.manifest import Manifest
    from edgevlm.progress import Note, Progress
    from edgevlm.runtime.layout import Pixels
    from edgevlm.verify.report import VerifyReport

AgainstOption = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="CHECKPOINT|REF.npz",
        help="Verify against the checkpoint (runs transformers, see `edgevlm reference`), or a "
        "reference file made from it; left out: what can be proved without.",
        show_default=False,
    ),
]
ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        "--images",
        metavar="FILE|DIR",
        help="Image to verify with; may be given several times.",
        show_default=False,
    ),
]


def verify(
    model: options.ModelArgument = None,
    against: AgainstOption = None,
    image: ImagesOption = None,
    level: options.LevelOption = None,
    mmproj: options.MmprojOption = None,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Check a converted model stage by stage: tokens, pixels, embeddings, distributions.

    Each stage passes, warns or fails, with the likely cause in words. Without --against: the
    tokenizer, the ledger of tensors, and that the answer changes with the image. Exit status 3
    when a stage fails. The verdict is kept in the model's manifest.
    """
    from functools import partial

    from edgevlm.build.resolve import resolve_model
    from edgevlm.cli import console
    from edgevlm.verify.images import load_images

    progress = console.progress_for(json=json, quiet=quiet)
    note = partial(console.note, quiet=quiet or json)
    images = load_images(image or [])
    found = resolve_model(model, level=level, mmproj=mmproj, progress=progress, note=note)
    for one in found.notes:
        note(one)
    report = verify_files(
        found.text,
        found.mmproj,
        against=against,
        images=images,
        threads=threads,
        progress=progress,
        note=note,
    )
    if json:
        console.print_json(report.to_dict())
    else:
        show_report(report, quiet=quiet)
    if report.verdict == "fail":
        raise typer.Exit(3)


def verify_files(
    text: Path,
    mmproj: Path | None,
    *,
    against: Path | None,
    images: Sequence[tuple[str, Pixels]],
    threads: int | None,
    progress: Progress,
    note: Note,
) -> VerifyReport:
    """Verify a model's files and keep the verdict in their manifest, where there is one."""
    from edgevlm.build.source import tokenizer_of
    from edgevlm.errors import OutputError
    from edgevlm.gguf_shards import read_model
    from edgevlm.manifest import read_manifest
    from edgevlm.verify.run import ModelFiles, read_or_make, verify_model
    from edgevlm.verify.store import keep_verdict

    for path in (text, mmproj):
        if path is not None:
            # What cannot be loaded is not worth a run of transformers.
            read_model(path)
    manifest = read_manifest(text.parent)
    if against is not None and against.is_dir():
        _check_adapter(manifest, against)
    reference = read_or_make(against, images, progress=progress) if against else None
    checkpoint = against if against is not None and against.is_dir() else tokenizer_of(manifest)
    report = verify_model(
        ModelFiles(text=text, mmproj=mmproj, manifest=manifest, checkpoint=checkpoint),
        reference=reference,
        against=str(against) if against else "",
        images=[pixels for _, pixels in images],
        n_threads=threads,
        progress=progress,
    )
    try:
        if not keep_verdict(report, text.parent):
            note("there is no manifest that could keep the verdict")
    except OutputError as error:
        note(f"the verdict is not kept: {error.message}")
    return report


def _check_adapter(manifest: Manifest | None, against: Path) -> None:
    """Refuse the bare checkpoint of a model that an adapter was merged into.

    Raises:
        ReferenceFileError: transformers would answer without the adapter.
    """
    from edgevlm.build.source import source_hashes
    from edgevlm.errors import ReferenceFileError

    if manifest is None or manifest.source.adapter is None:
        return
    if source_hashes(against) == manifest.source.sha256:
        raise ReferenceFileError(
            f"an adapter was merged into this model; `{against}` is the checkpoint without it",
            hint="merge it with peft (`merge_and_unload`), and name the folder that it saves",
        )


def verify_built(
    built: Built,
    *,
    against: Path | None,
    images: Sequence[Path] | None,
    threads: int | None,
    progress: Progress,
    note: Note,
) -> VerifyReport:
    """Verify what a conversion wrote."""
    from edgevlm.verify.images import load_images

    names = {entry.role: entry.name for entry in built.manifest.files if entry.name in built.kept}
    names |= {entry.role: entry.name for entry in built.written}
    return verify_files(
        built.folder / names["text"],
        built.folder / names["mmproj"] if "mmproj" in names else None,
        against=against,
        images=load_images(images or []),
        threads=threads,
        progress=progress,
        note=note,
    )


def show_report(report: VerifyReport, *, quiet: bool) -> None:
    """Print the stages on stdout, what lies behind them on stderr."""
    from edgevlm.cli import console

    console.table(
        ("stage", "verdict", "what was found"),
        [(stage.name, stage.status, stage.summary) for stage in report.stages],
    )
    for stage in report.stages:
        if stage.cause:
            console.note(f"{stage.name}: {stage.cause}")
    if report.n_left_out:
        console.note(
            f"{report.n_left_out} prompts of the reference were left out: name their images with"
            " --image"
        )
    for loss in report.losses:
        console.note(f"known loss: {loss}", quiet=quiet)
    files = " and ".join(name for name in (report.text_file, report.mmproj_file) if name)
    against = f" against {report.against}" if report.against else ""
    console.note(f"{report.verdict}: {files}{against}", quiet=quiet)
