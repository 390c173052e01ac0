"""95 % intervals of what was measured on some images, and a test of flips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.drift.report import Estimate

_LEVEL = 0.95


def clustered_mean(
    sums: Sequence[float] | NDArray[np.float64],
    counts: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    draws: int = 2000,
) -> Estimate:
    """Return sum(sums) / sum(counts), with its interval when clusters are drawn again.

    Args:
        sums: [n_clusters] of each cluster.
        counts: [n_clusters] positions of each cluster, all above 0.
        seed: of the draws.
        draws: how many times n_clusters clusters are drawn.
    """
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    value = float(totals.sum() / sizes.sum())
    random = np.random.default_rng(seed)
    chosen = random.integers(len(totals), size=(draws, len(totals)))
    ratios = totals[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high))


def mcnemar(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact test: two-sided, binomial with 1/2.

    Args:
        lost: pairs that were right and are wrong.
        gained: pairs that were wrong and are right.
    """
    n, fewer = lost + gained, min(lost, gained)
    ways = term = 1
    for taken in range(fewer):
        term = term * (n - taken) // (taken + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << n))


def clustered_ratio(
    sums: Sequence[float] | NDArray[np.float64],
    counts: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    draws: int = 2000,
) -> Estimate:
    """Return exp of the mean of logarithms, as of a perplexity ratio, with its interval."""
    mean = clustered_mean(sums, counts, seed=seed, draws=draws)
    return Estimate(value=math.exp(mean.value), low=math.exp(mean.low), high=math.exp(mean.high))


def clustered_share(
    sums: Sequence[float] | NDArray[np.float64],
    counts: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    draws: int = 2000,
) -> Estimate:
    """Return a share with its interval, which lies in 0 ... 1."""
    return clustered_mean(sums, counts, seed=seed, draws=draws)
