"""Intervals: hand-computed cases, scipy's bootstrap, and how often they hold the true value."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from benchmarks.interval_coverage import coverage
from edgevlm.drift.intervals import clustered_mean, clustered_ratio, clustered_share, mcnemar
from tests.drift import by_scipy

RANDOM = np.random.default_rng(11)
COUNTS = RANDOM.integers(3, 40, 60).astype(np.float64)
SUMS = RANDOM.lognormal(-3, 1, 60) * COUNTS


def test_the_value_is_the_ratio_of_all_sums() -> None:
    """A cluster counts by its size: (1 + 9) / (1 + 3), not the mean of 1 and 3."""
    found = clustered_mean([1, 9], [1, 3], seed=0)
    assert found.value == 2.5
    assert found.low < 1 < 3 < found.high


def test_the_same_seed_gives_the_same_interval() -> None:
    first, again, other = (clustered_mean(SUMS, COUNTS, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first.value == other.value
    assert first.low < first.value < first.high


def test_it_is_scipys_with_levels_widened_a_little() -> None:
    found = clustered_mean(SUMS, COUNTS, seed=0, draws=20_000)
    low, high = by_scipy.bca_interval(SUMS, COUNTS, seed=1)
    width = high - low
    assert low - 0.06 * width < found.low < low + 0.01 * width
    assert high - 0.01 * width < found.high < high + 0.12 * width


def test_a_skewed_sample_reaches_farther_up_than_down() -> None:
    found = clustered_mean(SUMS, COUNTS, seed=0)
    assert found.high - found.value > 1.2 * (found.value - found.low)


def test_ten_clusters_reach_as_far_as_students_t() -> None:
    """Draws of n clusters vary less than n new ones would, by (n - 1) / n: the levels mend it."""
    sums = np.asarray([NormalDist().inv_cdf((place + 0.5) / 10) for place in range(10)])
    found = clustered_mean(sums, np.ones(10), seed=0, draws=50_000)
    half = by_scipy.t_point(9) * float(sums.std(ddof=1)) / math.sqrt(10)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_order_does_not_shift_the_interval() -> None:
    one = clustered_mean(SUMS, COUNTS, seed=0, draws=20_000)
    other = clustered_mean(SUMS[::-1], COUNTS[::-1], seed=0, draws=20_000)
    assert other.low == pytest.approx(one.low, rel=0.03)
    assert other.high == pytest.approx(one.high, rel=0.03)


def test_clusters_drawn_in_blocks_are_those_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = clustered_mean(SUMS, COUNTS, seed=3)
    monkeypatch.setattr("edgevlm.drift.intervals._DRAWN_AT_ONCE", 6000)
    assert clustered_mean(SUMS, COUNTS, seed=3) == whole


@pytest.mark.parametrize("n", range(2, 10))
def test_few_clusters_get_students_interval_at_least(n: int) -> None:
    sums, counts = SUMS[:n], COUNTS[:n]
    value = sums.sum() / counts.sum()
    residuals = sums - value * counts
    error = math.sqrt(n * (residuals**2).sum() / (n - 1)) / counts.sum()
    half = by_scipy.t_point(n - 1) * error
    found = clustered_mean(sums, counts, seed=0)
    assert found.low <= value - half * 0.999
    assert found.high >= value + half * 0.999


def test_no_interval_lies_below_what_is_least() -> None:
    assert clustered_mean(SUMS[:3], COUNTS[:3], seed=0).low < 0
    assert clustered_mean(SUMS[:3], COUNTS[:3], seed=0, least=0).low == 0
    assert clustered_mean([2.0], [4], seed=0, least=0).low == 0


def test_one_cluster_says_little() -> None:
    """It is no interval of no width: x +- 9.68 |x| holds a normal mean in 95 % of cases."""
    found = clustered_mean([2.0], [4], seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5 - 4.84, 0.5 + 4.84)
    for centre in (0.0, 0.5, 1.0, 2.0, 5.0):
        drawn = np.random.default_rng(0).normal(centre, 1, 100_000)
        held = (np.abs(drawn - centre) <= 9.68 * np.abs(drawn)).mean()
        assert held > 0.947


def test_what_is_zero_everywhere_is_zero() -> None:
    found = clustered_mean(np.zeros(5), np.ones(5), seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    same = clustered_ratio([0.0], [7], seed=0)
    assert (same.value, same.low, same.high) == (1, 1, 1)


def test_values_that_are_all_alike_hold_together() -> None:
    found = clustered_mean(np.full(40, 0.1) * COUNTS[:40], COUNTS[:40], seed=0)
    assert found.low <= found.value <= found.high
    assert found.high == pytest.approx(found.low)


def test_a_ratio_is_exp_of_its_logarithms() -> None:
    mean = clustered_mean(SUMS - 2, COUNTS, seed=5)
    ratio = clustered_ratio(SUMS - 2, COUNTS, seed=5)
    assert ratio.value == math.exp(mean.value)
    assert (ratio.low, ratio.high) == (math.exp(mean.low), math.exp(mean.high))
    assert math.isfinite(clustered_ratio([1e5, 1e6], [1, 1], seed=0).high)


def test_a_share_stays_between_none_and_all() -> None:
    for sums in ([0, 1, 0], [3, 3, 2], [1, 2, 3]):
        found = clustered_share(sums, [3, 3, 3], seed=0)
        assert 0 <= found.low < found.value < found.high <= 1


@pytest.mark.parametrize("n", [1, 2, 20, 600])
def test_none_or_all_is_no_certainty(n: int) -> None:
    none = clustered_share([0] * 3, [n] * 3, seed=0)
    every = clustered_share([n] * 3, [n] * 3, seed=0)
    low, high = by_scipy.share_interval(0, 3 * n)
    assert (none.value, none.low, none.high) == (0, low, pytest.approx(high))
    low, high = by_scipy.share_interval(3 * n, 3 * n)
    assert (every.value, every.low, every.high) == (1, pytest.approx(low), high)


@pytest.mark.parametrize(
    ("case", "n", "least"),
    [
        ("KLD, sigma 0.7", 2, 0.8),
        ("KLD, sigma 0.7", 50, 0.88),
        ("KLD, sigma 1.3", 100, 0.83),
        ("share of 5 %", 10, 0.95),
        ("share of 50 %", 20, 0.9),
        ("perplexity ratio", 1, 0.92),
        ("perplexity ratio", 5, 0.9),
        ("perplexity ratio", 50, 0.9),
    ],
)
def test_the_interval_holds_the_true_value(case: str, n: int, least: float) -> None:
    """A short form: 0.95 is aimed at; benchmarks/README.md has what skewed drift leaves of it."""
    assert coverage(case, n, runs=150, draws=500)["held"] >= least


def test_the_plain_bootstrap_fails_where_ours_does_not() -> None:
    found = coverage("perplexity ratio", 2, runs=150, draws=500)
    assert found["plain"] < 0.6 < 0.9 < found["held"]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 17, 40])
def test_mcnemar_is_the_exact_binomial_test(n: int) -> None:
    for lost in range(n + 1):
        assert mcnemar(lost, n - lost) == pytest.approx(by_scipy.binomial_p(lost, n))


def test_mcnemar_by_hand() -> None:
    """One of seven: 2 (1 + 7) / 128."""
    assert mcnemar(1, 6) == mcnemar(6, 1) == 0.125
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 3) == 1
    assert mcnemar(0, 5000) < 1e-300
    assert mcnemar(2500, 2500) == 1
