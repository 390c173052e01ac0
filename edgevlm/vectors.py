"""Rows of numbers held against each other: log-probabilities of logits, distances of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return natural log-probabilities of [n, n_vocab] logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cosines(one: Floats, other: Floats) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows of two [n, n_embd] arrays."""
    left, right = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.maximum(norms, 1e-30)


def relative_error(ours: Floats, theirs: Floats) -> float:
    """Return |ours - theirs| / |theirs| over all values."""
    difference = np.linalg.norm(ours.astype(np.float64) - theirs.astype(np.float64))
    return float(difference / max(float(np.linalg.norm(theirs.astype(np.float64))), 1e-30))


def row_errors(ours: Floats, theirs: Floats) -> NDArray[np.float64]:
    """Return |ours - theirs| / |theirs| of each pair of rows of two [n, n_embd] arrays."""
    difference = np.linalg.norm(ours.astype(np.float64) - theirs.astype(np.float64), axis=1)
    return difference / np.maximum(np.linalg.norm(theirs.astype(np.float64), axis=1), 1e-30)
