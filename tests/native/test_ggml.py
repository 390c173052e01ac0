"""Row kernels and tensor types against gguf-py, and what ggml would abort on."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from edgevlm.errors import QuantizationError
from edgevlm.native import ggml

RNG = np.random.default_rng(7)
ROWS = RNG.standard_normal((6, 512)).astype(np.float32)
# Relative RMS error of each type on Gaussian rows, with some room.
TOLERANCES = {
    "F32": 0.0,
    "F16": 5e-4,
    "BF16": 4e-3,
    "Q8_0": 0.01,
    "Q6_K": 0.03,
    "Q5_K": 0.06,
    "Q5_1": 0.06,
    "Q5_0": 0.07,
    "Q4_K": 0.11,
    "Q4_1": 0.11,
    "Q4_0": 0.12,
    "IQ4_NL": 0.11,
    "Q3_K": 0.22,
    "Q2_K": 0.4,
}


@pytest.mark.parametrize("name", TOLERANCES)
def test_rows_come_back(name: str) -> None:
    data = np.frombuffer(ggml.quantize_rows(ROWS, name), dtype=np.uint8)
    assert data.size == 6 * ggml.row_n_bytes(name, 512)
    kind = gguf.GGMLQuantizationType[name]
    view = {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)
    back = np.asarray(dequantize(data.view(view).reshape(6, -1), kind), dtype=np.float32)
    error = np.sqrt(np.mean((back - ROWS) ** 2) / np.mean(ROWS**2))
    assert error <= TOLERANCES[name]


@pytest.mark.parametrize("name", [name for name in TOLERANCES if name[0] in "QI"])
def test_blocks_are_read_as_gguf_py_reads_them(name: str) -> None:
    data = ggml.quantize_rows(ROWS, name)
    blocks = np.frombuffer(data, dtype=np.uint8).reshape(6, -1)
    expected = dequantize(blocks, gguf.GGMLQuantizationType[name])
    values = ggml.dequantize_rows(data, name, 512)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)


def test_blocks_that_cannot_be_read() -> None:
    data = ggml.quantize_rows(ROWS, "Q8_0")
    for n_bytes, type_, n_per_row in ((-1, "Q8_0", 512), (0, "Q8_0", 500), (0, "I32", 512)):
        with pytest.raises(QuantizationError):
            ggml.dequantize_rows(data[: len(data) + n_bytes], type_, n_per_row)


def test_types_equal_the_ones_of_gguf_py() -> None:
    for kind, (block_size, block_n_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # gguf-py still has the size of an older layout, 40 bytes
            continue
        mine = ggml.tensor_types()[kind.name]
        assert (mine.id, mine.block_size, mine.block_n_bytes) == (
            kind.value,
            block_size,
            block_n_bytes,
        )
        assert ggml.type_id(kind.name) == kind.value
        assert ggml.type_name(kind.value) == kind.name


def test_imatrix_moves_the_error_to_where_it_matters_less() -> None:
    importance = np.ones(512, dtype=np.float32)
    importance[:64] = 1000.0
    errors: list[float] = []
    for imatrix in (None, importance):
        data = np.frombuffer(ggml.quantize_rows(ROWS, "Q4_K", imatrix), dtype=np.uint8)
        back = dequantize(data.reshape(6, -1), gguf.GGMLQuantizationType.Q4_K)
        errors.append(float(np.mean((back - ROWS)[:, :64] ** 2)))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "IQ4_NL", "IQ3_S", "IQ2_S"])
def test_large_importance_counts_by_its_ratios(name: str) -> None:
    # As large numbers as a float holds: the kernels' sums would overflow, and IQ types abort then.
    importance = np.linspace(0.25, 1.0, 512, dtype=np.float32) ** 4
    expected = ggml.quantize_rows(ROWS, name, importance)
    for exponent in (40, 127):
        assert ggml.quantize_rows(ROWS, name, np.ldexp(importance, exponent)) == expected
    alone = np.ones(512, dtype=np.float32)
    alone[7] = 3e38
    assert len(ggml.quantize_rows(ROWS, name, alone)) == len(expected)


def test_threads_give_the_same_bytes() -> None:
    rows = RNG.standard_normal((64, 512)).astype(np.float32)
    slabs = [rows[start : start + 8] for start in range(0, 64, 8)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(ggml.quantize_rows, slabs, ["Q4_K"] * len(slabs)))
    assert b"".join(parts) == ggml.quantize_rows(rows, "Q4_K")


def with_value(value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[3, 5] = value
    return rows


ONES = np.ones(512, dtype=np.float32)


@pytest.mark.parametrize(
    ("rows", "name", "imatrix", "words"),
    [
        (ROWS[:, :500].copy(), "Q8_0", None, "500 values is no whole number"),
        (ROWS[:, :480].copy(), "Q4_K", None, "480 values is no whole number"),
        (ROWS.astype(np.float64), "Q8_0", None, "contiguous float32"),
        (ROWS[:, ::2], "Q8_0", None, "contiguous float32"),
        (ROWS[0], "Q8_0", None, "contiguous float32"),
        (with_value(float("nan")), "Q4_K", None, "cannot be stored"),
        (with_value(float("inf")), "Q8_0", None, "cannot be stored"),
        (with_value(1e30), "IQ2_S", ONES, "cannot be stored"),
        (ROWS, "Q9_X", None, "unknown"),
        (ROWS, "Q8_K", None, "no type for weights"),
        (ROWS, "IQ2_XXS", None, "needs an importance matrix"),
        (ROWS, "Q4_K", ONES[:256], "512 contiguous float32"),
        (ROWS, "Q4_K", ONES.astype(np.float64), "512 contiguous float32"),
        (ROWS, "Q4_K", -ONES, "negative or non-finite"),
        (ROWS, "Q4_K", ONES * np.float32("nan"), "negative or non-finite"),
    ],
)
def test_what_ggml_would_abort_on_is_an_error(
    rows: np.ndarray, name: str, imatrix: np.ndarray | None, words: str
) -> None:
    with pytest.raises(QuantizationError, match=re.escape(words)):
        ggml.quantize_rows(rows, name, imatrix)


def test_unknown_type_number() -> None:
    with pytest.raises(QuantizationError, match="4711"):
        ggml.type_name(4711)
