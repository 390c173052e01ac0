"""One file of a model at another level, written somewhere else than into its directory."""

from __future__ import annotations

from pathlib import Path

from edgevlm.build.output import FilePlan, file_name, write_files, write_models
from edgevlm.build.quantize import plan_quantization
from edgevlm.manifest import Role
from edgevlm.model_dir import ModelDir
from edgevlm.progress import SILENT, Progress

# Whose rules a projector is planned with: none of its own.
_ANY_LEVEL = "Q8_0"


def write_one(
    model: ModelDir,
    *,
    role: Role,
    level: str,
    folder: Path,
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Make one level of a text model or projector from its 16-bit file, or from the checkpoint.

    Args:
        model: the model directory; nothing is written there.
        role: which of the two.
        level: of it.
        folder: where the file goes.
        n_threads: encoders at work; None: one per processor.
        progress: told the bytes written.

    Raises:
        QuantizationError: there is neither a 16-bit file nor a checkpoint, or no such level.
        ConversionError: a value that the level cannot hold.
        OutputError: the disk is too small.
    """
    file = _projector(model, level) if role == "mmproj" else None
    if file is None:
        plan = plan_quantization(
            model,
            level=level if role == "text" else _ANY_LEVEL,
            mmproj_level=level if role == "mmproj" else None,
            force=True,
        )
        file = next(file for file in plan.files if file.role == role)
    with write_models(folder, [file], force=True) as output:
        write_files(output, [file], n_threads=n_threads, progress=progress)
    return folder / file.name


def _projector(model: ModelDir, level: str) -> FilePlan | None:
    """Plan a projector from the 16-bit one; the text model beside it may be of any level."""
    from edgevlm.quantize.encode import mmproj_encoder
    from edgevlm.quantize.run import plan_quantize

    source = model.baseline("mmproj")
    if source is None:
        return None
    encoder = mmproj_encoder(level)
    return FilePlan(
        name=file_name("model", "mmproj", encoder.level),
        role="mmproj",
        level=encoder.level,
        profile=None,
        plan=plan_quantize(source.path, encoder),
        encoder=encoder,
    )
