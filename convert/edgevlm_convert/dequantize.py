"""Checkpoints of 8-bit weights with scales become float32 rows; other quantizations are refused.

Taken: FP8 (e4m3) with a scale for the tensor, each row or each block, as Qwen3 and DeepSeek publish
(`quant_method` fp8; transformers integrations/finegrained_fp8.py: weight x `weight_scale_inv`), and
compressed-tensors' weights of 8 bits: `float-quantized`, `int-quantized` and `pack-quantized`
(compressed_tensors/compressors: an int32 holds four values plus 128 each, the first one lowest).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.config import Section
from edgevlm_convert.derived import DerivedTensor, derived
from edgevlm_convert.json_file import DAMAGED_HINT, quoted
from edgevlm_convert.numbers import decode, integers
from edgevlm_convert.safetensors import SourceTensor

_ORIGINAL_HINT = (
    "convert the original 16-bit checkpoint: quantizing twice loses accuracy twice; its name is"
    " usually this one's without the ending"
)
_PACKED, _SHAPE = ".weight_packed", ".weight_shape"
_EIGHT_BIT = ("F8_E4M3", "I8")
# What belongs to activations and to the KV cache, which llama.cpp computes in float.
_ACTIVATION_ENDINGS = (
    ".input_scale",
    ".output_scale",
    ".activation_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    "_activation_scale",
    # Mistral's own naming.
    ".qscale_act",
)
_MAX_GROUPS = 64


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How scales lie over a weight.

    Attributes:
        blocks: (rows, columns) that one scale of a block is for, each a possibility.
        packed: whether 8-bit values may be packed into int32.
    """

    blocks: tuple[tuple[int, int], ...] = ()
    packed: bool = False


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A checkpoint's tensors as the rules want them.

    Attributes:
        tensors: by name, 8-bit weights and their scales made one.
        dequantized: names of the weights that were 8-bit values with scales.
        dropped: what is left out, with its reason.
    """

    tensors: Mapping[str, SourceTensor]
    dequantized: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])


def unpack(config: Section, tensors: Mapping[str, SourceTensor]) -> Unpacked:
    """Return the tensors of a checkpoint with every weight as float rows.

    Args:
        config: config.json; `quantization_config` says what was done to the weights.
        tensors: of the checkpoint.

    Raises:
        CheckpointError: quantized in a way that is refused.
        ConversionError: a weight without its scale, or a scale of no use.
    """
    wide = {name: _narrowed(tensor) for name, tensor in tensors.items()}
    layout = _layout(config)
    if layout is None:
        return Unpacked(tensors=wide)
    dropped = {
        name: "scale of activations, which llama.cpp computes in float"
        for name in wide
        if name.endswith(_ACTIVATION_ENDINGS)
    }
    left = {name: tensor for name, tensor in wide.items() if name not in dropped}
    found: dict[str, SourceTensor] = {}
    used: set[str] = set()
    for name, tensor in left.items():
        if layout.packed and name.endswith(_PACKED):
            weight, parts = _packed_weight(tensor, left, layout)
        elif tensor.dtype in _EIGHT_BIT and not name.endswith("_zero_point"):
            weight, parts = _scaled_weight(tensor, left, layout)
        else:
            continue
        found[weight.name] = weight
        used |= {name, *parts}
    plain = {name: tensor for name, tensor in left.items() if name not in used}
    # Derived tensors stand where the names are sorted to, as in any other checkpoint.
    return Unpacked(
        tensors=dict(sorted({**plain, **found}.items())),
        dequantized=tuple(sorted(found)),
        dropped=dropped,
    )


def check_quantization(config: Section) -> None:
    """Refuse a checkpoint by its config.json alone, before anything else of it is read.

    Raises:
        CheckpointError: quantized in a way that is refused.
    """
    _layout(config)


def _narrowed(tensor: SourceTensor) -> SourceTensor:
    """Return a float64 tensor as float32 rows; any other one as it is."""
    if tensor.dtype != "F64":
        return tensor
    width = tensor.shape[-1] if tensor.shape else 1

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        return decode(tensor, start * width, stop * width).reshape(-1, width)

    return derived(tensor, rows)


def _layout(config: Section) -> _Layout | None:
    """Return how scales lie over the weights; None for a checkpoint that is not quantized.

    Raises:
        CheckpointError: a method that is refused.
    """
    section = config
    if not config.has("quantization_config"):
        if not config.has("text_config") or not config.section("text_config").has(
            "quantization_config"
        ):
            return None
        section = config.section("text_config")
    quantization = section.section("quantization_config")
    method = quantization.text("quant_method", default="unknown")
    if method == "fp8":
        if not quantization.has("weight_block_size"):
            return _Layout()
        rows, columns = _pair(quantization, "weight_block_size")
        return _Layout(blocks=((rows, columns),))
    if method == "compressed-tensors":
        return _compressed_layout(quantization)
    raise CheckpointError(
        f"the checkpoint is quantized already (quant_method {quoted(method)})",
        hint=_ORIGINAL_HINT,
    )


def _compressed_layout(quantization: Section) -> _Layout:
    groups = quantization.section("config_groups")
    names = sorted(groups.keys())[:_MAX_GROUPS]
    blocks: list[tuple[int, int]] = []
    for name in names:
        group = groups.section(name)
        if not group.has("weights"):
            continue
        weights = group.section("weights")
        bits = weights.integer("num_bits", low=1, high=64, default=8)
        if bits != 8:
            raise CheckpointError(
                f"the checkpoint is quantized to {bits} bits (compressed-tensors)",
                hint=_ORIGINAL_HINT,
            )
        if weights.has("block_structure"):
            blocks.append(_pair(weights, "block_structure"))
        if weights.has("group_size"):
            blocks.append((1, weights.integer("group_size", low=-1, high=1 << 20)))
    return _Layout(blocks=tuple(block for block in blocks if min(block) > 0), packed=True)


def _pair(section: Section, key: str) -> tuple[int, int]:
    numbers = section.integers(key, low=1, high=1 << 20, max_length=2)
    if len(numbers) != 2:
        section.fail(key, "two numbers: rows and columns of a block")
    return numbers[0], numbers[1]


def _scaled_weight(
    tensor: SourceTensor, tensors: Mapping[str, SourceTensor], layout: _Layout
) -> tuple[DerivedTensor, set[str]]:
    """Return an 8-bit weight in float, and the names of what it took besides itself."""
    stem = tensor.name.removesuffix(".weight")
    prefix = f"{stem}.weight" if stem != tensor.name else tensor.name
    names = (f"{prefix}_scale_inv", f"{prefix}_scale", f"{stem}.qscale_weight")
    scale = next(
        (tensors[name] for name in names if name in tensors),
        None,
    )
    if scale is None:
        raise ConversionError(
            f"tensor {quoted(tensor.name)} of dtype {tensor.dtype} has no scale",
            hint="the checkpoint is incomplete; download it again",
        )
    zero = tensors.get(f"{prefix}_zero_point")
    return _scaled(tensor, tensor.name, tensor.shape, scale, zero, layout)


def _packed_weight(
    packed: SourceTensor, tensors: Mapping[str, SourceTensor], layout: _Layout
) -> tuple[DerivedTensor, set[str]]:
    stem = packed.name.removesuffix(_PACKED)
    shape_tensor, scale = (tensors.get(f"{stem}{ending}") for ending in (_SHAPE, ".weight_scale"))
    if shape_tensor is None or scale is None or shape_tensor.shape != (len(packed.shape),):
        raise ConversionError(
            f"tensor {quoted(packed.name)} has no scale or no shape beside it",
            hint="the checkpoint is incomplete; download it again",
        )
    if f"{stem}.weight_zero_point" in tensors or f"{stem}.weight_g_idx" in tensors:
        raise ConversionError(
            f"tensor {quoted(packed.name)} is packed with zero points or in another order",
            hint=_ORIGINAL_HINT,
        )
    shape = tuple(int(size) for size in integers(shape_tensor, 0, len(packed.shape)))
    if (
        packed.dtype != "I32"
        or not all(0 < size < 1 << 31 for size in shape)
        or packed.shape != (*shape[:-1], -(-shape[-1] // 4))
    ):
        raise ConversionError(
            f"tensor {quoted(packed.name)} of shape {list(packed.shape)} cannot hold 8-bit values"
            f" of shape {list(shape)}",
            hint=DAMAGED_HINT,
        )
    weight, parts = _scaled(packed, f"{stem}.weight", shape, scale, None, layout)
    whole = replace(weight, made_of=(*weight.made_of, shape_tensor.name))
    return whole, {*parts, shape_tensor.name}


def _scaled(
    tensor: SourceTensor,
    name: str,
    shape: tuple[int, ...],
    scale: SourceTensor,
    zero: SourceTensor | None,
    layout: _Layout,
) -> tuple[DerivedTensor, set[str]]:
    """Return (value - zero point) x scale, row by row."""
    grid = _grid(name, shape, scale, layout)
    if zero is not None and zero.shape != scale.shape:
        raise ConversionError(
            f"tensor {quoted(zero.name)} has shape {list(zero.shape)}, its scale"
            f" {list(scale.shape)}",
            hint=DAMAGED_HINT,
        )
    width = shape[-1]
    stored = tensor.shape[-1]

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        if tensor.dtype == "I32":
            raw = integers(tensor, start * stored, stop * stored).astype("<u4").view(np.uint8)
            values = raw.reshape(stop - start, 4 * stored)[:, :width].astype(np.float32) - 128
        else:
            values = decode(tensor, start * width, stop * width).reshape(-1, width)
        if zero is not None:
            values -= grid.over(zero, start, stop)
        return values * grid.over(scale, start, stop)

    whole = replace(derived(tensor, rows), name=name, shape=shape)
    parts = [scale.name, *([zero.name] if zero is not None else [])]
    return replace(whole, made_of=(tensor.name, *parts)), set(parts)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Which scale belongs to which value.

    Attributes:
        n_rows: rows of one matrix of the weight.
        width: columns of it.
        block_rows: rows that share a scale.
        block_columns: columns that do.
        grid_rows: rows of scales of one matrix.
        grid_width: columns of scales.
    """

    n_rows: int
    width: int
    block_rows: int
    block_columns: int
    grid_rows: int
    grid_width: int

    def over(self, scale: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        """Return the scales of rows [start, stop), spread over their columns."""
        numbers = np.arange(start, stop)
        wanted = numbers // self.n_rows * self.grid_rows + numbers % self.n_rows // self.block_rows
        low, high = int(wanted.min()), int(wanted.max()) + 1
        values = decode(scale, low * self.grid_width, high * self.grid_width)
        chosen = values.reshape(-1, self.grid_width)[wanted - low]
        if self.grid_width == 1:
            return chosen
        return np.repeat(chosen, self.block_columns, axis=1)[:, : self.width]


def _grid(name: str, shape: tuple[int, ...], scale: SourceTensor, layout: _Layout) -> _Grid:
    """Return how `scale` lies over a weight of `shape`.

    Raises:
        ConversionError: no layout that the configuration names gives that many scales.
    """
    if len(shape) < 2 or not math.prod(shape):
        raise ConversionError(f"tensor {quoted(name)} is no matrix", hint=DAMAGED_HINT)
    *leading, n_rows, width = shape
    n_matrices = math.prod(leading)
    for block_rows, block_columns in (*layout.blocks, (1, width), (n_rows, width)):
        grid_rows, grid_width = -(-n_rows // block_rows), -(-width // block_columns)
        if scale.n_values == n_matrices * grid_rows * grid_width:
            return _Grid(
                n_rows=n_rows,
                width=width,
                block_rows=block_rows,
                block_columns=block_columns,
                grid_rows=grid_rows,
                grid_width=grid_width,
            )
    if scale.n_values == 1:
        # One scale for all matrices: every row of every one asks for the first.
        return _Grid(
            n_rows=n_rows * n_matrices,
            width=width,
            block_rows=n_rows * n_matrices,
            block_columns=width,
            grid_rows=1,
            grid_width=1,
        )
    raise ConversionError(
        f"tensor {quoted(scale.name)} has {scale.n_values} scales, which do not lie over"
        f" {quoted(name)} of shape {list(cast(tuple[int, ...], shape))} as config.json says",
        hint="config and weights are of different models; download the checkpoint again",
    )
