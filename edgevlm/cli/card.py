"""`edgevlm card`: a model directory gets its README.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from edgevlm.model_dir import ModelDir
    from edgevlm.progress import Progress

ModelFolderArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model directory, a .gguf file in one, or `shapes` (built in); left out: the model "
        "written or used last.",
        show_default=False,
    ),
]


def card(
    model: ModelFolderArgument = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.json",
            help="What `edgevlm compare --json` printed (default: the last report that the "
            "model's manifest keeps).",
            show_default=False,
        ),
    ] = None,
    force: options.ForceOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Write a model directory's README.md, as the Hub shows it.

    Its head for the Hub, a table of the files, what each level lost, and how to use them with
    llama.cpp, Ollama and edgevlm.
    """
    from functools import partial

    from edgevlm.cli import console
    from edgevlm.drift.card import write_card
    from edgevlm.drift.report_file import read_report

    progress = console.progress_for(quiet=quiet)
    note = partial(console.note, quiet=quiet)
    found = read_report(report) if report is not None else None
    directory = _directory(model, progress)
    written = write_card(directory, report=found, force=force, progress=progress)
    for sentence in written.notes:
        note(sentence)
    note(f"wrote {written.path}")


def _directory(name: str | None, progress: Progress) -> ModelDir:
    """Open the model directory to write into.

    Raises:
        SourceNotFoundError: there is none, or it is a part of the Hub's own cache.
    """
    from edgevlm.build.cache import last_model
    from edgevlm.build.resolve import BUILT_IN, open_model
    from edgevlm.errors import SourceNotFoundError
    from edgevlm.model_dir import open_model_dir

    chosen = name or last_model() or BUILT_IN
    path = Path(chosen)
    found = (
        open_model_dir(path.absolute().parent)
        if path.is_file()
        else open_model(chosen, progress=progress)
    )
    # models--ORG--NAME/snapshots/COMMIT: what the Hub sent, and what it sends again.
    if found.folder.parent.name == "snapshots":
        raise SourceNotFoundError(
            f"`{found.folder}` belongs to the Hub's cache",
            hint="copy the files into a folder of yours, and give that",
        )
    return found
