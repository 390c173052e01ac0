"""What scipy says, with types: it ships none."""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.floating[Any]]


def probabilities(logits: Floats) -> NDArray[np.float64]:
    return np.asarray(special.softmax(logits.astype(np.float64), axis=1))


def logprobs(logits: Floats) -> NDArray[np.float64]:
    return np.asarray(special.log_softmax(logits.astype(np.float64), axis=1))


def kld(base: Floats, level: Floats) -> NDArray[np.float64]:
    """Return KL(base || level) of each row of logits, in nats."""
    p, q = probabilities(base), probabilities(level)
    return np.asarray(special.rel_entr(p, q).sum(axis=1))


def t_point(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))


def binomial_p(n_right: int, n: int) -> float:
    return float(stats.binomtest(n_right, n, 0.5).pvalue) if n else 1.0


def share_interval(n_right: int, n: int) -> tuple[float, float]:
    """Return Clopper and Pearson's 95 % interval."""
    found = stats.binomtest(n_right, n, 0.5).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def bca_interval(sums: Floats, counts: Floats, seed: int) -> tuple[float, float]:
    """Return the 95 % BCa interval of a ratio of sums, without widening."""
    found = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
