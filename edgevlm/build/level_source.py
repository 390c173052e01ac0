"""What a level is made from: 16-bit files, else the checkpoint, else blocks that are read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevlm.build.source import Recipe, recipe_of
from edgevlm.errors import GGUFError, QuantizationError
from edgevlm.gguf_shards import read_model
from edgevlm.manifest import Role
from edgevlm.model_dir import FLOAT_LEVELS, ModelDir
from edgevlm.quantize.profile import QuantProfile
from edgevlm.quantize.run import quantized_type


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """The file that a text model's level is made from.

    Attributes:
        path: the file, the first one of a model in several.
        requantized_from: the type of its blocks; None: it holds floats.
    """

    path: Path
    requantized_from: str | None = None


def text_source(
    model: ModelDir, *, text: Path | None, profile: QuantProfile, allow_requantize: bool
) -> TextFile | Recipe:
    """Choose what a text model's level is made from, 16 bits or the checkpoint where it can be.

    Args:
        model: the model directory.
        text: the file that the user named, None for none.
        profile: of the level.
        allow_requantize: a quantized file will do where there is nothing better.

    Raises:
        QuantizationError: there are quantized files only, and they are not allowed, or the level
            is one of floats.
        GGUFError: a file is broken.
    """
    if text is not None and (not allow_requantize or quantized_type(read_model(text)) is None):
        return TextFile(path=text)
    if text is None or _is_of_directory(model, text):
        own = model.baseline("text")
        if own is not None:
            return TextFile(path=own.path)
        recipe = recipe_of(model.manifest)
        if recipe is not None:
            return recipe
    path = text or (_most_bits(model, "text") if allow_requantize else None)
    if path is None:
        raise _nothing_to_quantize(model)
    return TextFile(path=path, requantized_from=_blocks_of(path, profile.type))


def projector_source(
    model: ModelDir, *, mmproj: Path | None, level: str | None, allow_requantize: bool
) -> tuple[Path | None, str | None]:
    """Choose the projector that a level is made from, and the type of its blocks, if any.

    A projector that is there in blocks only stays as it is, unless another level was asked for.

    Args:
        model: the model directory.
        mmproj: the file that the user named, None for none.
        level: the projector's level that the user asked for, None for none.
        allow_requantize: a quantized file will do where there is nothing better.

    Raises:
        QuantizationError: the level is one of floats, and the file is not.
    """
    own = model.baseline("mmproj")
    path = mmproj or (own.path if own else None)
    if path is None and level is not None and model.find("mmproj", level) is None:
        path = _most_bits(model, "mmproj")
    if path is None or not allow_requantize:
        return path, None
    return path, _blocks_of(path, (level or "").upper())


def _is_of_directory(model: ModelDir, path: Path) -> bool:
    """Whether the manifest says that a file was made from the weights of the directory's others."""
    return any(file.known and file.path.absolute() == path.absolute() for file in model.files)


def _most_bits(model: ModelDir, role: Role) -> Path | None:
    """Return the file of a role with the most bits per weight."""
    files = [read_model(file.path) for file in model.of_role(role)]
    best = max(files, key=lambda file: file.bits_per_weight, default=None)
    return best.path if best is not None else None


def _blocks_of(path: Path, type: str) -> str | None:
    found = quantized_type(read_model(path))
    if found is not None and type in FLOAT_LEVELS:
        # The file would pass for one of 16 bits ever after.
        raise QuantizationError(
            f"`{path}` holds {found}: as {type} it would be larger and no better",
            hint="use it as it is, or convert the checkpoint again",
        )
    return found


def _nothing_to_quantize(model: ModelDir) -> QuantizationError | GGUFError:
    texts = model.of_role("text")
    if not texts and model.skipped:
        return GGUFError(
            model.skipped[0].removeprefix("left out: "),
            hint="copy or download the model's files again",
        )
    levels = ", ".join(file.level for file in texts) or "none"
    instead = "; or allow a level to be made from blocks: --allow-requantize" if texts else ""
    return QuantizationError(
        f"`{model.folder}` has no 16-bit text model to quantize (levels: {levels})",
        hint=f"convert the checkpoint again: `edgevlm convert CHECKPOINT --level LEVEL`{instead}",
    )
