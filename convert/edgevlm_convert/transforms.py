"""Row transforms that several architectures share, for `rules.Transform`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.rules import ReadRows

RowTransform = Callable[[ReadRows, int, int], NDArray[np.float32]]


def plus_one(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
    """Add 1: norms that are trained around 0 and multiplied by 1 + weight."""
    return read(start, stop) + np.float32(1)


def rotated_rows(n_rows: int, by: int) -> RowTransform:
    """Return the transform that makes row `by` the first one; the rows before it go to the end."""

    def rows(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
        order = (np.arange(start, stop) + by) % n_rows
        return gather_rows(read, order)

    return rows


def paired_halves(n_head: int, head_dim: int) -> RowTransform:
    """Return the transform of query and key matrices from transformers' rotary layout to ggml's.

    transformers rotates row i of a head together with row i + head_dim / 2, ggml's `NORM` type
    with the next one (llama.cpp conversion/llama.py, `permute`).
    """
    return reordered_rows(_paired_order(n_head, head_dim))


def paired_bias(n_head: int, head_dim: int) -> RowTransform:
    """Return the transform of their biases, each of which is one row."""
    order = _paired_order(n_head, head_dim)

    def rows(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
        return read(start, stop)[:, order]

    return rows


def _paired_order(n_head: int, head_dim: int) -> NDArray[np.int64]:
    order = np.arange(n_head * head_dim, dtype=np.int64).reshape(n_head, 2, head_dim // 2)
    return order.swapaxes(1, 2).reshape(-1)


def reordered_rows(order: NDArray[np.int64]) -> RowTransform:
    """Return the transform whose row i is row `order[i]` of the source."""

    def rows(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
        return gather_rows(read, order[start:stop])

    return rows


def gather_rows(read: ReadRows, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return rows in any order; what lies close together is read at once."""
    low, high = int(order.min()), int(order.max()) + 1
    if high - low <= 4 * len(order):
        return read(low, high)[order - low]
    return np.concatenate([read(int(row), int(row) + 1) for row in order])


def reordered_columns(order: NDArray[np.int64]) -> RowTransform:
    """Return the transform whose column i is column `order[i]` of the source."""

    def rows(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(read(start, stop)[:, order])

    return rows


def decay(order: NDArray[np.int64]) -> RowTransform:
    """Return the transform of logarithms of decay rates to what a state's logarithm falls by.

    Args:
        order: of the columns, as `reordered_columns`.
    """
    columns = reordered_columns(order)

    def rows(read: ReadRows, start: int, stop: int) -> NDArray[np.float32]:
        # In double precision, so that the last bit is the same on every machine.
        return (-np.exp(columns(read, start, stop).astype(np.float64))).astype(np.float32)

    return rows
