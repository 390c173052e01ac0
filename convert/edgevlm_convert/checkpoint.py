"""A Hugging Face checkpoint folder: its config files and its tensors, shards joined.

A folder holds config.json and model.safetensors, or shards named by model.safetensors.index.json
(transformers' layout). Where both are there the single file counts, as in transformers. Without a
config.json, params.json and consolidated.safetensors count (Mistral's layout).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgevlm.errors import CheckpointError, SourceNotFoundError
from edgevlm_convert import mistral_format
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, quoted, read_json
from edgevlm_convert.omni import thinker_of
from edgevlm_convert.safetensors import SourceTensor, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_CONFIG_BYTES = 4_000_000
_MAX_INDEX_BYTES = 64_000_000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FOLDER_HINT = (
    "give a folder with config.json and *.safetensors, as `hf download ORG/NAME` makes it"
)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Names of the files that hold the weights: one, or the index of several."""

    single: str
    index: str


_TRANSFORMERS = _Layout(single=SINGLE_FILE, index=INDEX_FILE)
_MISTRAL = _Layout(single=mistral_format.SINGLE_FILE, index=mistral_format.INDEX_FILE)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was opened: nothing but headers and config has been read.

    Attributes:
        folder: where it is.
        config: config.json; of a checkpoint that also speaks, the section that answers in text.
        tensors: by name, in llama.cpp's order: shards by name, then tensors by name.
        is_mistral: whether its tensors have the names of Mistral's own files.
    """

    folder: Path
    config: Section
    tensors: Mapping[str, SourceTensor]
    is_mistral: bool = False

    def optional_json(self, name: str) -> Section | None:
        """Return another JSON file of the folder, None when there is none."""
        path = self.folder / name
        if not path.exists():
            return None
        return Section(read_json(path, max_bytes=_MAX_CONFIG_BYTES), file=name)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder.

    Raises:
        SourceNotFoundError: the path does not exist.
        CheckpointError: not a checkpoint, only pickles, or broken.
    """
    try:
        return _open(folder)
    except OSError as error:
        # A name too long, a parent that may not be entered.
        raise CheckpointError(
            f"`{folder}` cannot be read: {error.strerror}", hint=_FOLDER_HINT
        ) from error


def _open(folder: Path) -> Checkpoint:
    layout = _layout_of(folder)
    _check_folder(folder, layout)
    is_mistral = layout == _MISTRAL
    if is_mistral:
        config = mistral_format.read_params(folder)
    else:
        raw = read_json(folder / "config.json", max_bytes=_MAX_CONFIG_BYTES)
        config = thinker_of(Section(raw, file="config.json"))
    tensors: dict[str, SourceTensor] = {}
    for shard in _shards(folder, layout):
        for tensor in read_header(shard):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {quoted(tensor.name)} is in {quoted(tensors[tensor.name].path.name)} "
                    f"and in {quoted(shard.name)}",
                    hint=DAMAGED_HINT,
                )
            tensors[tensor.name] = tensor
    _check_index(folder, layout, tensors)
    return Checkpoint(folder=folder, config=config, tensors=tensors, is_mistral=is_mistral)


def _layout_of(folder: Path) -> _Layout:
    has_params = (folder / mistral_format.PARAMS).exists()
    return _MISTRAL if has_params and not (folder / "config.json").exists() else _TRANSFORMERS


def _check_folder(folder: Path, layout: _Layout) -> None:
    if not folder.exists():
        raise SourceNotFoundError(f"`{folder}` does not exist", hint=_FOLDER_HINT)
    if not folder.is_dir():
        if folder.suffix.lower() == ".gguf":
            raise CheckpointError(
                f"`{folder}` is a GGUF file, not a checkpoint",
                hint="it needs no conversion: use it with `edgevlm quantize` or `edgevlm chat -m`",
            )
        raise CheckpointError(f"`{folder}` is a file, not a checkpoint", hint=_FOLDER_HINT)
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names and "adapter_config.json" in names:
        raise CheckpointError(
            f"`{folder}` is an adapter (LoRA), not a whole model",
            hint=f"convert its base model with it: `edgevlm convert BASE --adapter {folder}`",
        )
    if layout == _TRANSFORMERS and "config.json" not in names:
        raise CheckpointError(
            f"`{folder}` is not a checkpoint: it has no config.json", hint=_FOLDER_HINT
        )
    if layout.single not in names and layout.index not in names:
        _explain_no_weights(folder, layout)


def _explain_no_weights(folder: Path, layout: _Layout) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"`{folder}` holds only pickle weights ({quoted(pickles[0])}), "
            "which can run any code when they are loaded: refused",
            hint="convert them to safetensors with `save_pretrained` where you trust the source",
        )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        raise CheckpointError(
            f"`{folder}` has {quoted(shards[0])} but neither {layout.single} nor {layout.index}",
            hint="download the checkpoint again with its index",
        )
    raise CheckpointError(f"`{folder}` has no *.safetensors weights", hint=_FOLDER_HINT)


def _shards(folder: Path, layout: _Layout) -> list[Path]:
    """Return the safetensors files in order; the index cannot point out of the folder."""
    if (folder / layout.single).exists():
        return [folder / layout.single]
    if not (folder / layout.index).exists():
        raise CheckpointError(f"`{folder / layout.single}` cannot be read", hint=DAMAGED_HINT)
    names = sorted(set(_weight_map(folder, layout).values()))
    for name in names:
        plain = name and not set(name) & {"/", "\\", ":", "\0"}
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{layout.index} names {quoted(name)}, which is not a safetensors file of the"
                " folder",
                hint="do not trust this checkpoint: its index points elsewhere",
            )
        if not (folder / name).exists():
            raise CheckpointError(
                f"shard {quoted(name)} is missing from `{folder}`",
                hint="download the checkpoint again: the download was interrupted",
            )
    if not names:
        raise CheckpointError(f"{layout.index} names no shard", hint=DAMAGED_HINT)
    return [folder / name for name in names]


def _weight_map(folder: Path, layout: _Layout) -> dict[str, str]:
    index = read_json(folder / layout.index, max_bytes=_MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in cast(dict[str, object], weight_map).values()
    ):
        raise CheckpointError(f"{layout.index} has no valid weight_map", hint=DAMAGED_HINT)
    return cast(dict[str, str], weight_map)


def _check_index(folder: Path, layout: _Layout, tensors: Mapping[str, SourceTensor]) -> None:
    """Check that the index and the shards agree on which tensor is where."""
    if (folder / layout.single).exists():
        return
    weight_map = _weight_map(folder, layout)
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise CheckpointError(
                f"{layout.index} promises tensor {quoted(name)} in {quoted(shard)}, it is not"
                " there",
                hint=DAMAGED_HINT,
            )
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise CheckpointError(
                f"tensor {quoted(name)} in {quoted(tensor.path.name)} is not in {layout.index}",
                hint=DAMAGED_HINT,
            )
