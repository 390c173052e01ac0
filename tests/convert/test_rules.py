"""The rules one by one, on tensors whose every element says where it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert.merge import Merge
from edgevlm_convert.rules import (
    Drop,
    Mapped,
    ReadRows,
    Rename,
    Rule,
    Shape,
    Split,
    Transform,
    map_tensors,
)
from edgevlm_convert.safetensors import SourceTensor, read_header
from numpy.typing import NDArray

from edgevlm.errors import ConversionError
from tests.synthetic import write_safetensors


def counted(shape: Shape, start: int = 0) -> NDArray[np.float32]:
    return (np.arange(math.prod(shape), dtype=np.float32) + start).reshape(shape)


@pytest.fixture
def source(tmp_path: Path) -> dict[str, SourceTensor]:
    values = {"a": counted((6, 4)), "b": counted((2, 4), 100), "c": counted((3, 2, 2, 5))}
    path = tmp_path / "x.safetensors"
    write_safetensors(
        path, {name: ("F32", value.shape, value.tobytes()) for name, value in values.items()}
    )
    return {tensor.name: tensor for tensor in read_header(path)}


def apply(source: dict[str, SourceTensor], rules: Sequence[Rule]) -> dict[str, Mapped]:
    names = {name for rule in rules for name in rule.shapes}
    chosen = {name: tensor for name, tensor in source.items() if name in names}
    outputs, _ = map_tensors(chosen, {"text": rules})
    return {mapped.name: mapped for mapped in outputs["text"]}


def values(mapped: Mapped) -> NDArray[np.float32]:
    """Read row by row and at once: both must agree."""
    n_rows = math.prod(mapped.shape[:-1])
    whole = mapped.read(0, n_rows)
    by_row = np.concatenate([mapped.read(row, row + 1) for row in range(n_rows)])
    np.testing.assert_array_equal(whole, by_row)
    if mapped.read_bits is not None:
        np.testing.assert_array_equal(mapped.read_bits(0, n_rows).view("<f4"), whole.reshape(-1))
    return whole.reshape(mapped.shape)


def test_rename(source: dict[str, SourceTensor]) -> None:
    out = apply(source, [Rename(source="a", target="x", shape=(6, 4))])
    np.testing.assert_array_equal(values(out["x"]), counted((6, 4)))


@pytest.mark.parametrize("small_piece", [0, 1 << 14])
@pytest.mark.parametrize(
    ("name", "shape", "axis", "squeeze", "n_parts"),
    [
        ("a", (6, 4), 0, False, 3),
        ("a", (6, 4), 1, False, 2),
        ("c", (3, 2, 2, 5), 2, True, 2),
        ("c", (3, 2, 2, 5), 1, False, 2),
        ("c", (3, 2, 2, 5), 0, True, 3),
    ],
)
def test_split(
    source: dict[str, SourceTensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    shape: Shape,
    axis: int,
    squeeze: bool,
    n_parts: int,
    small_piece: int,
) -> None:
    monkeypatch.setattr("edgevlm_convert.rules._SMALL_PIECE", small_piece)
    targets = tuple(f"x{part}" for part in range(n_parts))
    rule = Split(source=name, targets=targets, shape=shape, axis=axis, squeeze=squeeze)
    out = apply(source, [rule])
    for part, expected in enumerate(np.split(counted(shape), n_parts, axis=axis)):
        expected = expected.squeeze(axis) if squeeze else expected
        assert out[f"x{part}"].shape == expected.shape
        np.testing.assert_array_equal(values(out[f"x{part}"]), expected)


def test_merge(source: dict[str, SourceTensor]) -> None:
    out = apply(source, [Merge(sources={"a": (6, 4), "b": (2, 4)}, target="x")])
    expected = np.concatenate([counted((6, 4)), counted((2, 4), 100)])
    np.testing.assert_array_equal(values(out["x"]), expected)


def test_transform(source: dict[str, SourceTensor]) -> None:
    def plus_one(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
        return read(start, stop) + np.float32(1)

    out = apply(source, [Transform(source="a", target="x", shape=(6, 4), rows=plus_one)])
    np.testing.assert_array_equal(values(out["x"]), counted((6, 4), 1))
    assert out["x"].read_bits is None


def test_drop_is_in_the_ledger(source: dict[str, SourceTensor]) -> None:
    rules: list[Rule] = [
        Rename(source="a", target="x", shape=(6, 4)),
        Rename(source="b", target="y", shape=(2, 4)),
        Drop(source="c", reason="not needed"),
    ]
    outputs, ledger = map_tensors(source, {"text": rules[:1], "mmproj": rules[1:]})
    assert [mapped.name for mapped in outputs["mmproj"]] == ["y"]
    assert ledger.dropped == {"c": "not needed"}
    assert ledger.used == {"a": ("x",), "b": ("y",)}
    assert ledger.n_source_tensors == 3


def test_two_rules_for_one_tensor_are_an_error(source: dict[str, SourceTensor]) -> None:
    rules: list[Rule] = [
        Rename(source="a", target="x", shape=(6, 4)),
        Drop(source="a", reason="because"),
    ]
    with pytest.raises(ConversionError, match="two rules match tensor `a`"):
        apply(source, rules)


def test_two_tensors_for_one_name_are_an_error(source: dict[str, SourceTensor]) -> None:
    rules: list[Rule] = [
        Rename(source="a", target="x", shape=(6, 4)),
        Rename(source="b", target="x", shape=(2, 4)),
    ]
    with pytest.raises(ConversionError, match="two source tensors become `x`"):
        apply(source, rules)


@pytest.mark.parametrize(
    ("name", "shape", "precision", "types"),
    [
        ("blk.0.attn_q.weight", (4, 4), "matrix", ("F32", "F16", "BF16")),
        ("blk.0.attn_norm.weight", (4,), "matrix", ("F32", "F32", "F32")),
        ("blk.0.attn_norm.weight", (4, 4), "matrix", ("F32", "F32", "F32")),
        ("blk.0.attn_q.bias", (4,), "matrix", ("F32", "F32", "F32")),
        ("x.table", (4, 4), "matrix", ("F32", "F32", "F32")),
        ("v.position_embd.weight", (4, 4), "f32", ("F32", "F32", "F32")),
        ("v.patch_embd.weight.1", (4, 3, 2, 2), "f16 or f32", ("F32", "F16", "F32")),
    ],
)
def test_float_types_follow_llama_cpps_converter(
    name: str, shape: Shape, precision: str, types: tuple[str, str, str]
) -> None:
    mapped = Mapped(
        name=name,
        shape=shape,
        sources=(),
        precision=precision,  # pyright: ignore[reportArgumentType]
        read=lambda start, stop: counted((stop - start, shape[-1])),
    )
    assert tuple(mapped.stored_type(outtype) for outtype in ("F32", "F16", "BF16")) == types
