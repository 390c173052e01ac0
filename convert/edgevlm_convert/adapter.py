"""A PEFT LoRA adapter, merged into the checkpoint's tensors while they are read.

Formulas: peft tuners/lora/layer.py (`get_delta_weight`: W + s B A, s = alpha / r; with rsLoRA it is
alpha / sqrt(r)), dora.py (m (W + s B A) / |W + s B A|, norms over each row); files and patterns:
peft utils/save_and_load.py and utils/other.py (`get_pattern_key`). All in float32, row by row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import CheckpointError, ConversionError, SourceNotFoundError
from edgevlm_convert.config import Section
from edgevlm_convert.derived import derived, float_rows
from edgevlm_convert.json_file import quoted, read_json
from edgevlm_convert.numbers import decode
from edgevlm_convert.prefixes import other_names
from edgevlm_convert.safetensors import SourceTensor, read_header

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_MAX_CONFIG_BYTES = 4_000_000
_MODEL_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer."
_PAIR_ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
_EMBEDDING = ".lora_embedding_A"
# Initialisations that change the base weights themselves: merged into the original they are wrong.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Variants whose product is another, or whose modules are none of the checkpoint's.
_OTHER_KINDS = (
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
_HINT = "adapter and checkpoint are of different models; merge with peft's `merge_and_unload`"
# peft's own merge changes both where the two are tied, and then answers otherwise than it trained.
UNTIE_HINT = (
    "where output and embedding are tied, untie the checkpoint first: save it with a head of its"
    " own and `tie_word_embeddings` false, then convert that with the adapter"
)
_MAX_RANK = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter folder that was opened.

    Attributes:
        folder: where it is.
        config: adapter_config.json.
        tensors: by name.
    """

    folder: Path
    config: Section
    tensors: Mapping[str, SourceTensor]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A checkpoint's tensors with an adapter merged in.

    Attributes:
        tensors: by name.
        adapted: names of the adapter's tensors, by that of the checkpoint's tensor that they change
            or stand in for.
        replaced: the checkpoint's tensors that the adapter's stand in for, with the reason.
    """

    tensors: Mapping[str, SourceTensor]
    adapted: Mapping[str, tuple[str, ...]]
    replaced: Mapping[str, str]


def open_adapter(folder: Path) -> Adapter:
    """Open a PEFT folder.

    Raises:
        SourceNotFoundError: it does not exist, or is no adapter.
        CheckpointError: broken, or of a kind that cannot be merged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise SourceNotFoundError(
            f"`{folder}` is no adapter: "
            + (f"it has no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"),
            hint="give the folder that peft's `save_pretrained` wrote",
        )
    config = Section(read_json(folder / CONFIG_FILE, max_bytes=_MAX_CONFIG_BYTES), file=CONFIG_FILE)
    _check_kind(config)
    if not (folder / WEIGHTS_FILE).exists():
        raise CheckpointError(
            f"`{folder}` has no {WEIGHTS_FILE}",
            hint="save the adapter as safetensors: pickles are not read"
            if (folder / _PICKLE_FILE).exists()
            else "the folder is incomplete; copy or download it again",
        )
    tensors = {tensor.name: tensor for tensor in read_header(folder / WEIGHTS_FILE)}
    return Adapter(folder=folder, config=config, tensors=tensors)


def _check_kind(config: Section) -> None:
    config.require("peft_type", ("LORA",), default="LORA")
    config.require("fan_in_fan_out", (False,), default=False)
    config.require("lora_bias", (False,), default=False)
    start = config.raw("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        config.fail("init_lora_weights", "one that leaves the base weights as they are")
    for key in ("use_qalora", "use_bdlora"):
        config.require(key, (False,), default=False)
    for key in _OTHER_KINDS:
        if config.has(key) and config.raw(key) not in ([], {}):
            config.fail(key, "nothing: such an adapter cannot be merged here")


def merge(adapter: Adapter, tensors: Mapping[str, SourceTensor]) -> Merged:
    """Return the checkpoint's tensors with the adapter merged in.

    Args:
        adapter: opened.
        tensors: of the checkpoint, as float rows.

    Raises:
        CheckpointError: a pattern that is no regular expression, a rank that contradicts a shape.
        ConversionError: an adapter tensor that finds no base, one of another shape, or a second one
            for the same base.
    """
    merged = dict(tensors)
    adapted: dict[str, tuple[str, ...]] = {}
    replaced: dict[str, str] = {}
    # peft saves an embedding that it changes with the pair: the pair is added to what it saved.
    saved: set[str] = set()
    pairs: dict[str, dict[str, SourceTensor]] = {}
    for name, tensor in adapter.tensors.items():
        module, role = _role(name)
        if role:
            pairs.setdefault(module, {})[role] = tensor
            continue
        base = _base(module, tensors, name)
        # Saved whole: modules_to_save, and biases that were trained.
        _check_shape(tensor, tensor.shape, base.shape, base)
        _claim(adapted, base, (tensor,))
        if _BASE_LAYER in name:
            saved.add(base.name)
        replaced |= dict.fromkeys(base.parts, f"the adapter's {quoted(name)} stands in its place")
        merged[base.name] = _named(replace(tensor, name=base.name), tensor)
    for module, parts in pairs.items():
        first = next(iter(parts.values()))
        base = _base(f"{module}.weight", tensors, first.name)
        if base.name in saved:
            adapted[base.name] += tuple(tensor.name for tensor in parts.values())
        else:
            _claim(adapted, base, tuple(parts.values()))
        merged[base.name] = _merged(merged[base.name], parts, adapter, module)
    return Merged(tensors=merged, adapted=adapted, replaced=replaced)


def _claim(
    adapted: dict[str, tuple[str, ...]], base: SourceTensor, tensors: tuple[SourceTensor, ...]
) -> None:
    if base.name in adapted:
        raise ConversionError(
            f"the adapter's tensors {quoted(adapted[base.name][0])} and {quoted(tensors[0].name)}"
            f" are both for {quoted(base.name)}",
            hint=_HINT,
        )
    adapted[base.name] = tuple(tensor.name for tensor in tensors)


def _role(name: str) -> tuple[str, str]:
    """Return the module and what the tensor is to it; no role for one that replaces another."""
    plain = name.removeprefix(_MODEL_PREFIX)
    for ending, role in _PAIR_ENDINGS.items():
        if plain.endswith(ending):
            return plain.removesuffix(ending), role
    return plain.replace(".modules_to_save.default.", ".").replace(_BASE_LAYER, "."), ""


def _base(name: str, tensors: Mapping[str, SourceTensor], source: str) -> SourceTensor:
    """Return the tensor of the checkpoint that an adapter's tensor is for."""
    for candidate in (name, *other_names(name)):
        if candidate in tensors:
            return tensors[candidate]
    raise ConversionError(
        f"the adapter's tensor {quoted(source)} finds no {quoted(name)} in the checkpoint",
        hint=f"{_HINT}; {UNTIE_HINT}" if name.endswith("lm_head.weight") else _HINT,
    )


def _named(tensor: SourceTensor, source: SourceTensor) -> SourceTensor:
    """Return a tensor of the adapter under the base's name; the ledger names both."""

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        return float_rows(source, start, stop)

    return replace(derived(tensor, rows), made_of=(source.name,))


def _merged(
    base: SourceTensor, parts: Mapping[str, SourceTensor], adapter: Adapter, module: str
) -> SourceTensor:
    down, up, magnitude = (parts.get(role) for role in ("A", "B", "magnitude"))
    if down is None or up is None:
        present = next(iter(parts.values()))
        raise ConversionError(
            f"the adapter's tensor {quoted(present.name)} has no partner", hint=_HINT
        )
    rank = down.shape[0] if down.shape else 0
    scale = _scale(adapter.config, module, rank)
    n_rows, width = base.shape[0], math.prod(base.shape[1:])
    embedding = down.name.endswith(_EMBEDDING)
    # An embedding's pair is [rank, tokens] and [width, rank]: its product is the table, transposed.
    wanted = ((rank, n_rows), (width, rank)) if embedding else ((rank, width), (n_rows, rank))
    for tensor, shape in zip((down, up), wanted, strict=True):
        flat = (tensor.shape[0], math.prod(tensor.shape[1:])) if tensor.shape else ()
        _check_shape(tensor, flat, shape, base)
    if magnitude is not None:
        _check_shape(magnitude, (magnitude.n_values,), (n_rows,), base)
        if embedding or len(base.shape) != 2:
            raise ConversionError(
                f"the adapter's tensor {quoted(magnitude.name)} is for no matrix", hint=_HINT
            )

    # Read once, not with every slab; a few at a time, as the threads go from tensor to tensor.
    def whole(tensor: SourceTensor) -> NDArray[np.float32]:
        return _whole(tensor).reshape(tensor.shape[0], -1)

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        per_row = width // base.shape[-1] if len(base.shape) > 1 else 1
        first, last = start // per_row, -(-stop // per_row)
        weight = float_rows(base, first * per_row, last * per_row).reshape(last - first, width)
        if embedding:
            delta = whole(down)[:, first:last].T @ whole(up).T
        else:
            delta = _rows(up, first, last, rank) @ whole(down)
        weight = weight + np.float32(scale) * delta
        if magnitude is not None:
            norms = np.sqrt((weight.astype(np.float64) ** 2).sum(axis=1))
            wanted_norms = decode(magnitude, first, last).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                # A row of zeros gives no number, which `bits` refuses by name.
                weight = weight * (wanted_norms / norms)[:, None]
        pieces = weight.astype(np.float32, copy=False).reshape((last - first) * per_row, -1)
        return pieces[start - first * per_row : stop - first * per_row]

    more = tuple(tensor for tensor in (down, up, magnitude) if tensor is not None)
    return derived(base, rows, more=more)


@lru_cache(maxsize=8)
def _whole(tensor: SourceTensor) -> NDArray[np.float32]:
    return decode(tensor, 0, tensor.n_values)


def _rows(tensor: SourceTensor, start: int, stop: int, width: int) -> NDArray[np.float32]:
    return decode(tensor, start * width, stop * width).reshape(-1, width)


def _check_shape(
    tensor: SourceTensor, shape: tuple[int, ...], wanted: tuple[int, ...], base: SourceTensor
) -> None:
    if shape != wanted:
        raise ConversionError(
            f"the adapter's tensor {quoted(tensor.name)} has shape {list(tensor.shape)}, which does"
            f" not go with {quoted(base.name)} of shape {list(base.shape)}",
            hint=_HINT,
        )


def _scale(config: Section, module: str, rank: int) -> float:
    """Return the factor of B A: alpha / r, by the patterns where they match the module."""
    named_rank = config.integer("r", low=1, high=_MAX_RANK, default=8)
    named_rank = _pattern(config, "rank_pattern", module, named_rank)
    if int(named_rank) != rank:
        raise CheckpointError(
            f"{CONFIG_FILE} gives {quoted(module)} the rank {named_rank:g}, its tensors {rank}",
            hint=_HINT,
        )
    alpha = config.number("lora_alpha", low=-1e6, high=1e6, default=8.0)
    alpha = _pattern(config, "alpha_pattern", module, alpha)
    if config.boolean("use_rslora", default=False):
        return alpha / math.sqrt(rank)
    return alpha / rank


def _pattern(config: Section, key: str, module: str, usual: float) -> float:
    """Return the value of the first pattern that the end of a module's name matches."""
    patterns = config.raw(key)
    if not patterns:
        return usual
    section = config.section(key)
    for pattern in cast(dict[str, object], patterns):
        # Nested repeats could take for ever; peft writes names, and simple expressions by hand.
        if len(pattern) > 200 or re.search(r"[+*}]\)?[+*{]", pattern):
            section.fail(pattern, "a simpler pattern")
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            section.fail(pattern, "a regular expression as its key")
        if found:
            return section.number(pattern, low=-1e6, high=1e6)
    return usual
