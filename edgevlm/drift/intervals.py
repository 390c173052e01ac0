"""95 % intervals of what was measured on some images, and a test of flips.

Questions about one image stand and fall together, and tokens of one answer still more: what is
drawn again is therefore the image (the cluster), with all that was measured on it. The interval is
the bootstrap's, corrected for bias and skewness (BCa: Efron, "Better bootstrap confidence
intervals", 1987), at levels that are widened as Student's t is for few clusters (Hesterberg, "What
teachers should know about the bootstrap", 2015). Below ten clusters it is never narrower than the
t interval: draws of two clusters cannot leave the range of the two.

How often the true value lies in it depends on the number of images and on how skewed the drift is;
benchmarks/interval_coverage.py measures that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgevlm.drift.report import Estimate

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats

_TWO_SIDED = 0.025
_FEW_CLUSTERS = 10
_DRAWN_AT_ONCE = 1 << 20
# 97.5 % points of Student's t for 1, 2 and 3 degrees of freedom, where the series is coarse.
_T_POINTS = (12.7062, 4.3027, 3.1824)
# One value x of a normal variable is a 95 % interval of its mean, whatever its variance:
# x +- 9.68 |x| (Machol and Rosenblatt, "Confidence interval based on single observation", 1966).
_SINGLE = 9.68
_NORMAL = NormalDist()


def clustered_mean(
    sums: Values, counts: Values, *, seed: int, draws: int = 2000, least: float = -math.inf
) -> Estimate:
    """Return sum(sums) / sum(counts) and its 95 % interval.

    Of one cluster nothing is known of how clusters differ: its interval is x +- 9.68 |x|, which
    holds for a normal variable of any variance. Clusters that are all alike get an interval of no
    width; shares are better served by `clustered_share`.

    Args:
        sums: [n_clusters] of each cluster.
        counts: [n_clusters] values of each cluster, all above 0.
        seed: of the draws.
        draws: how many times n_clusters clusters are drawn.
        least: the value cannot lie below; no interval does.
    """
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    value = float(totals.sum() / sizes.sum())
    if len(totals) == 1:
        low, high = value - _SINGLE * abs(value), value + _SINGLE * abs(value)
    else:
        low, high = _bootstrap(totals, sizes, value, seed=seed, draws=draws)
        if len(totals) < _FEW_CLUSTERS:
            half = _t_half_width(totals, sizes, value)
            low, high = min(low, value - half), max(high, value + half)
    # Rounding may leave the value a little outside of an interval of no width.
    return Estimate(value=value, low=max(min(low, value), least), high=max(high, value))


def clustered_ratio(sums: Values, counts: Values, *, seed: int, draws: int = 2000) -> Estimate:
    """Return exp of a mean of logarithms, as of a perplexity ratio, with its interval.

    Args:
        sums: [n_clusters] of the logarithms of each cluster.
        counts: as of `clustered_mean`.
        seed: as there.
        draws: as there.
    """
    mean = clustered_mean(sums, counts, seed=seed, draws=draws)
    return Estimate(value=_exp(mean.value), low=_exp(mean.low), high=_exp(mean.high))


def clustered_share(sums: Values, counts: Values, *, seed: int, draws: int = 2000) -> Estimate:
    """Return the share of what is counted, with its interval in 0 ... 1.

    Where all or none count there is nothing to draw from: then the interval is Clopper and
    Pearson's (1934), as of values that have nothing to do with each other.

    Args:
        sums: [n_clusters] how many count in each cluster.
        counts: as of `clustered_mean`.
        seed: as there.
        draws: as there.
    """
    found = clustered_mean(sums, counts, seed=seed, draws=draws, least=0)
    # At n of n the exact bound has a closed form.
    farthest = 1 - _TWO_SIDED ** (1 / float(np.sum(counts)))
    if found.value <= 0:
        return Estimate(value=0, low=0, high=farthest)
    if found.value >= 1:
        return Estimate(value=1, low=1 - farthest, high=1)
    return Estimate(value=found.value, low=found.low, high=min(found.high, 1))


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


def _bootstrap(
    totals: Floats, sizes: Floats, value: float, *, seed: int, draws: int
) -> tuple[float, float]:
    """Return the BCa interval of a ratio of sums, at widened levels."""
    n = len(totals)
    drawn = _drawn_ratios(totals, sizes, seed=seed, draws=draws)
    below = float((drawn < value).mean() + (drawn == value).mean() / 2)
    # How far the value lies from the middle of the draws.
    bias = _NORMAL.inv_cdf(min(max(below, 1 / draws), 1 - 1 / draws))
    without_one = (totals.sum() - totals) / (sizes.sum() - sizes)
    pulls = without_one.mean() - without_one
    spread = float((pulls**2).sum()) ** 1.5
    skewness = float((pulls**3).sum()) / (6 * spread) if spread > 0 else 0.0
    reach = _t_point(n - 1) * math.sqrt(n / (n - 1))
    levels: list[float] = []
    for side in (-reach, reach):
        shifted = bias + side
        # Beyond the pole the correction has no meaning: the end of the draws is all that is known.
        stretch = 1 - skewness * shifted
        levels.append(
            _NORMAL.cdf(bias + shifted / stretch) if stretch > 0 else _NORMAL.cdf(side * math.inf)
        )
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)


def _drawn_ratios(totals: Floats, sizes: Floats, *, seed: int, draws: int) -> Floats:
    """Return the ratio of `draws` samples of clusters, drawn in blocks that bound the memory."""
    random, n = np.random.default_rng(seed), len(totals)
    at_once = max(_DRAWN_AT_ONCE // n, 1)
    parts: list[Floats] = []
    for start in range(0, draws, at_once):
        chosen = random.integers(n, size=(min(at_once, draws - start), n))
        parts.append(totals[chosen].sum(axis=1) / sizes[chosen].sum(axis=1))
    return np.concatenate(parts)


def _t_half_width(totals: Floats, sizes: Floats, value: float) -> float:
    """Return half the width of the t interval of a ratio of sums (linearised)."""
    n = len(totals)
    residuals = totals - value * sizes
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(sizes.sum())
    return _t_point(n - 1) * error


def _t_point(freedom: int) -> float:
    """Return the 97.5 % point of Student's t (Abramowitz and Stegun, 26.7.5, above 3 degrees)."""
    if freedom <= len(_T_POINTS):
        return _T_POINTS[freedom - 1]
    z = _NORMAL.inv_cdf(1 - _TWO_SIDED)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _exp(value: float) -> float:
    # A ratio beyond what JSON can hold says no more than this one.
    return math.exp(min(value, 700.0))
