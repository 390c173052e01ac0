"""Checkpoints of 8-bit weights: every value is what the format's own formula gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.numbers import decode
from edgevlm_convert.safetensors import read_header
from numpy.typing import NDArray

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.tricks import split_safetensors
from tests.synthetic import encode, write_checkpoint, write_safetensors

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]
Quantize = Callable[[str, NDArray[np.float32]], tuple[Stored, NDArray[np.float32]]]
GATE = "model.language_model.layers.1.mlp.gate_proj.weight"
SUFFIX = "_proj.weight"


def e4m3(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the nearest bytes of E4M3 and their values, from the definition: sign, 4, 3 bits."""
    table = np.array(
        [
            (-1) ** (byte >> 7)
            * (
                2.0 ** ((byte >> 3 & 15) - 7) * (1 + (byte & 7) / 8)
                if byte >> 3 & 15
                else 2.0**-6 * (byte & 7) / 8
            )
            for byte in range(256)
        ],
        dtype=np.float32,
    )
    table[[0x7F, 0xFF]] = np.inf
    order = np.argsort(table, kind="stable")
    places = np.clip(np.searchsorted(table[order], values), 1, 253)
    nearer = np.abs(table[order][places - 1] - values) < np.abs(table[order][places] - values)
    chosen = order[places - nearer].astype(np.uint8)
    return chosen, table[chosen]


def blockwise(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
    """FP8 as Qwen3 publishes it: a scale for each block of 32 x 16, `weight_scale_inv`."""
    rows, columns = values.shape
    grid = -(-rows // 32), -(-columns // 16)
    scales = np.linspace(0.25, 4, grid[0] * grid[1], dtype=np.float32).reshape(grid)
    spread = np.repeat(np.repeat(scales, 32, axis=0), 16, axis=1)[:rows, :columns]
    stored, near = e4m3(values / spread)
    parts: Stored = {
        name: ("F8_E4M3", values.shape, stored.tobytes()),
        f"{name}_scale_inv": ("F32", grid, scales.tobytes()),
    }
    return parts, (near * spread).astype(np.float32)


def per_tensor(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
    scale = np.float32(0.5)
    stored, near = e4m3(values / scale)
    parts: Stored = {
        name: ("F8_E4M3", values.shape, stored.tobytes()),
        f"{name}_scale_inv": ("F32", (), scale.tobytes()),
        name.replace(".weight", ".activation_scale"): ("F32", (), scale.tobytes()),
    }
    return parts, (near * scale).astype(np.float32)


def by_row(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
    """compressed-tensors int-quantized: int8 and a bf16 scale a row, with zero points."""
    scales = np.exp2(-np.arange(len(values)) % 5 - 6.0).astype(np.float32)[:, None]
    zeros = (np.arange(len(values)) % 7 - 3).astype(np.int8)[:, None]
    stored = np.clip(np.round(values / scales) + zeros, -128, 127).astype(np.int8)
    stem = name.removesuffix(".weight")
    parts: Stored = {
        name: ("I8", values.shape, stored.tobytes()),
        f"{stem}.weight_scale": ("BF16", scales.shape, encode(scales, "BF16")),
        f"{stem}.weight_zero_point": ("I8", zeros.shape, zeros.tobytes()),
    }
    return parts, ((stored.astype(np.float32) - zeros) * scales).astype(np.float32)


def packed(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
    """compressed-tensors pack-quantized: four values in an int32, a scale for 16 columns."""
    rows, columns = values.shape
    scales = np.linspace(1 / 64, 3 / 64, rows * (columns // 16), dtype=np.float32)
    scales = scales.reshape(rows, -1)
    spread = np.repeat(scales, 16, axis=1)
    whole = np.clip(np.round(values / spread), -128, 127).astype(np.int32)
    words = (whole + 128).reshape(rows, -1, 4)
    stem = name.removesuffix(".weight")
    parts: Stored = {
        f"{stem}.weight_packed": (
            "I32",
            (rows, columns // 4),
            (words << np.array([0, 8, 16, 24])).sum(axis=2).astype("<u4").tobytes(),
        ),
        f"{stem}.weight_shape": ("I64", (2,), np.array(values.shape, dtype="<i8").tobytes()),
        f"{stem}.weight_scale": ("F32", scales.shape, scales.tobytes()),
    }
    return parts, (whole * spread).astype(np.float32)


def _compressed(**weights: object) -> dict[str, object]:
    scheme = {"num_bits": 8, "symmetric": True, **weights}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }


KINDS: Mapping[str, tuple[Quantize, dict[str, object]]] = {
    "fp8 by block": (blockwise, {"quant_method": "fp8", "weight_block_size": [32, 16]}),
    "fp8 by tensor": (per_tensor, {"quant_method": "fp8", "weight_block_size": None}),
    "int8 by row": (by_row, _compressed(type="int", strategy="channel", symmetric=False)),
    "int8 packed by group": (packed, _compressed(type="int", strategy="group", group_size=16)),
}


def quantized(
    folder: Path, quantize: Quantize, config: Mapping[str, object]
) -> dict[str, NDArray[np.float32]]:
    """Write a checkpoint whose projections are quantized; return their values by GGUF-free name."""
    write_checkpoint(folder)
    path = folder / "model.safetensors"
    expected: dict[str, NDArray[np.float32]] = {}
    stored: Stored = {}
    header, data = split_safetensors(path)
    tensors = {tensor.name: tensor for tensor in read_header(path)}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if name.startswith("model.language_model.layers.") and name.endswith(SUFFIX):
            tensor = tensors[name]
            values = decode(tensor, 0, tensor.n_values).reshape(tensor.shape)
            parts, expected[name] = quantize(name, values)
            stored |= parts
        else:
            raw = data[slice(*entry["data_offsets"])]
            stored[name] = (entry["dtype"], tuple(entry["shape"]), raw)
    write_safetensors(path, stored)
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    document["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    return expected


def values_of(plan: ConversionPlan, name: str) -> NDArray[np.float32]:
    tensor = next(tensor for tensor in plan.text.tensors if tensor.info.name == name)
    rows, width = tensor.info.shape
    # In pieces that fit no block, as the writer's slabs do not.
    return np.concatenate(
        [tensor.read(start, min(start + 7, rows)) for start in range(0, rows, 7)]
    ).reshape(rows, width)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_what_the_formula_gives(tmp_path: Path, kind: str) -> None:
    expected = quantized(tmp_path, *KINDS[kind])
    plan = plan_conversion(tmp_path)
    assert plan.outtype == "BF16", "the type of what is not quantized"
    np.testing.assert_array_equal(values_of(plan, "blk.1.ffn_gate.weight"), expected[GATE])
    down = GATE.replace("gate", "down")
    np.testing.assert_array_equal(values_of(plan, "blk.1.ffn_down.weight"), expected[down])


@pytest.mark.parametrize("kind", KINDS)
def test_every_scale_is_in_the_ledger(tmp_path: Path, kind: str) -> None:
    quantized(tmp_path, *KINDS[kind])
    ledger = plan_conversion(tmp_path).ledger
    stored = {tensor.name for tensor in read_header(tmp_path / "model.safetensors")}
    assert set(ledger.used) | set(ledger.dropped) == stored
    assert all("activation_scale" in name for name in ledger.dropped)
    scale = next(name for name in sorted(stored) if "gate_proj.weight_scale" in name)
    assert len(ledger.used[scale]) == 1


def test_float64_is_narrowed(tmp_path: Path) -> None:
    def widen(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
        return {name: ("F64", values.shape, values.astype("<f8").tobytes())}, values

    expected = quantized(tmp_path, widen, {})
    document = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    document.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")
    plan = plan_conversion(tmp_path)
    np.testing.assert_array_equal(values_of(plan, "blk.1.ffn_gate.weight"), expected[GATE])


def test_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    def huge(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
        return {name: ("F64", values.shape, (values.astype("<f8") * 1e200).tobytes())}, values

    quantized(tmp_path, huge, {})
    document = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    document.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConversionError, match=r"gate_proj.weight` holds a number at element 0"):
        values_of(plan_conversion(tmp_path), "blk.1.ffn_gate.weight")


def test_a_number_that_is_none(tmp_path: Path) -> None:
    def broken(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
        parts, near = blockwise(name, values)
        dtype, shape, raw = parts[name]
        parts[name] = (dtype, shape, raw[:5] + b"\x7f" + raw[6:])
        return parts, near

    quantized(tmp_path, broken, KINDS["fp8 by block"][1])
    with pytest.raises(ConversionError, match=r"gate_proj.weight` holds a number at element 5"):
        values_of(plan_conversion(tmp_path), "blk.1.ffn_gate.weight")


def _without(part: str) -> Quantize:
    def change(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
        parts, near = packed(name, values) if "pack" in part else blockwise(name, values)
        return {key: value for key, value in parts.items() if part not in key}, near

    return change


def _wrong_shape(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
    parts, near = blockwise(name, values)
    parts[f"{name}_scale_inv"] = ("F32", (3,), np.ones(3, dtype="<f4").tobytes())
    return parts, near


def _wrong_packing(name: str, values: NDArray[np.float32]) -> tuple[Stored, NDArray[np.float32]]:
    parts, near = packed(name, values)
    shape = np.array([1 << 40, 2], dtype="<i8").tobytes()
    parts[name.replace(".weight", ".weight_shape")] = ("I64", (2,), shape)
    return parts, near


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        (_without("scale"), "fp8 by block", "has no scale"),
        (_wrong_shape, "fp8 by block", "has 3 scales"),
        (_wrong_packing, "int8 packed by group", "cannot hold 8-bit values"),
    ],
)
def test_scales_of_another_model(
    tmp_path: Path, change: Quantize, kind: str, expected: str
) -> None:
    quantized(tmp_path, change, KINDS[kind][1])
    with pytest.raises(ConversionError, match=expected) as caught:
        plan_conversion(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "mxfp4", "hqq"])
def test_other_quantizations_are_refused_with_a_hint(tmp_path: Path, method: str) -> None:
    config: dict[str, Any] = {"quant_method": method, "bits": 4}
    quantized(tmp_path, blockwise, config)
    with pytest.raises(CheckpointError, match=f"quant_method `{method}`") as caught:
        plan_conversion(tmp_path)
    assert "original 16-bit checkpoint" in caught.value.hint


def test_four_bits_are_refused(tmp_path: Path) -> None:
    quantized(tmp_path, packed, _compressed(type="int", num_bits=4))
    with pytest.raises(CheckpointError, match="quantized to 4 bits"):
        plan_conversion(tmp_path)
