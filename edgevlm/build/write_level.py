"""A level of a model, with the projector it would ship with, outside of its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevlm.build.output import write_files, write_models
from edgevlm.build.quantize import QuantizePlan
from edgevlm.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class WrittenLevel:
    """The two files of a level.

    Attributes:
        text: the text model.
        mmproj: its projector, which may be the directory's own; None for a model without.
    """

    text: Path
    mmproj: Path | None


def write_level(
    plan: QuantizePlan,
    folder: Path,
    *,
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> WrittenLevel:
    """Write what is missing of a planned level into `folder`; its own directory stays as it is.

    Raises:
        OutputError: the disk is too small.
    """
    with write_models(folder, plan.files, force=True) as output:
        write_files(output, plan.files, n_threads=n_threads, progress=progress)
    paths = {file.role: folder / file.name for file in plan.files}
    kept = next((plan.folder / name for name in plan.kept), None)
    return WrittenLevel(text=paths["text"], mmproj=paths.get("mmproj", kept))
