"""How far two sides are apart: distributions and pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.reference_file import Case
from edgevlm.vectors import log_softmax


def kl_divergence(case: Case, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return KLD(reference, ours) at each position of a case's answer, in nats.

    The reference keeps its most likely tokens; all others count as one, so that the result is a
    lower bound of the full divergence (the log sum inequality), and exact where it kept them all.

    Args:
        case: the reference, [n, k] tokens.
        logits: [n, n_vocab] ours.
    """
    ours = np.take_along_axis(log_softmax(logits), case.top_ids.astype(np.int64), axis=1)
    theirs = case.top_logprobs.astype(np.float64)
    kept = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    tail = case.tail_mass.astype(np.float64)
    # What rounding leaves of a tail that is not there must not count.
    left = np.maximum(1.0 - np.exp(ours).sum(axis=1), 1e-12)
    rest = np.where(tail > 1e-9, tail * (np.log(np.maximum(tail, 1e-12)) - np.log(left)), 0.0)
    # Rounding of what is stored leaves as little below zero.
    return np.maximum(kept + rest, 0.0)


def same_top(case: Case, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return at which positions both sides find the same token most likely."""
    return logits.argmax(axis=1) == case.top_ids[:, 0]


@dataclass(frozen=True, kw_only=True)
class PixelDifference:
    """How far two preprocessed images of one size are apart.

    Attributes:
        max_difference: largest, in normalised units.
        mean_difference: mean of the absolute differences.
        slope: of our pixels over theirs by channel, fitted.
        offset: of the same fit.
        residual: largest difference that the fit leaves.
    """

    max_difference: float
    mean_difference: float
    slope: tuple[float, ...]
    offset: tuple[float, ...]
    residual: float

    @property
    def is_rescaled(self) -> bool:
        """Whether another mean or deviation alone explains the difference."""
        changed = any(abs(slope - 1) > 1e-3 for slope in self.slope) or any(
            abs(offset) > 1e-3 for offset in self.offset
        )
        return changed and self.residual < 0.05 * max(self.max_difference, 1e-9)


def pixel_difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> PixelDifference:
    """Compare two [3, height, width] float32 images."""
    slopes: list[float] = []
    offsets: list[float] = []
    residual = 0.0
    for mine, other in zip(ours.astype(np.float64), theirs.astype(np.float64), strict=True):
        spread = float(((other - other.mean()) ** 2).sum())
        slope = float(((other - other.mean()) * (mine - mine.mean())).sum()) / max(spread, 1e-30)
        offset = float(mine.mean() - slope * other.mean())
        residual = max(residual, float(np.abs(mine - slope * other - offset).max()))
        slopes.append(slope)
        offsets.append(offset)
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return PixelDifference(
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        slope=tuple(slopes),
        offset=tuple(offsets),
        residual=residual,
    )
