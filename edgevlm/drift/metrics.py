"""Drift of distributions and of visual tokens, aggregated over prompts and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.drift.intervals import clustered_mean, clustered_ratio, clustered_share
from edgevlm.drift.report import Estimate, TokenDrift, VisionDrift
from edgevlm.errors import DriftError
from edgevlm.vectors import cosines, row_errors

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredAnswer:
    """One prompt at one level, along the tokens of one answer, all arrays [n_tokens].

    Attributes:
        cluster: what is drawn again as one: the image's digest, or the prompt where there is none.
        is_image: whether the prompt has an image.
        kld: float64 KL(baseline || level) in nats.
        kld_error: float64 width to its upper bound (`kept_rows.Divergence`).
        same_top: bool, whether both find the same token most likely.
        p_level: float64 probability of the answer's token at the level.
        p_base: float64 at the baseline.
        logprob_level: float64 natural logarithm of `p_level`.
        logprob_base: float64 of `p_base`.
    """

    cluster: str
    is_image: bool
    kld: Floats
    kld_error: Floats
    same_top: NDArray[np.bool_]
    p_level: Floats
    p_base: Floats
    logprob_level: Floats
    logprob_base: Floats


def token_drift(
    scored: Sequence[ScoredAnswer], *, seed: int, draws: int = 2000
) -> TokenDrift | None:
    """Return the drift over all tokens of some answers; None where there is no token.

    Percentiles lie linearly between order statistics, as llama-perplexity's do.

    Args:
        scored: prompts at one level.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    scored = [answer for answer in scored if len(answer.kld)]
    if not scored:
        return None
    klds = np.concatenate([answer.kld for answer in scored])
    delta_p = np.concatenate([answer.p_level - answer.p_base for answer in scored])
    median, p99, p999, largest = np.quantile(klds, [0.5, 0.99, 0.999, 1])
    counts = _by_cluster(scored, lambda answer: len(answer.kld))
    kld_sums = _by_cluster(scored, lambda answer: answer.kld.sum())
    n_same = _by_cluster(scored, lambda answer: answer.same_top.sum())
    # Perplexity is exp(-mean logprob): the level's over the baseline's.
    losses = _by_cluster(scored, lambda answer: (answer.logprob_base - answer.logprob_level).sum())
    same_top = clustered_share(n_same, counts, seed=seed, draws=draws)
    if largest == 0 and same_top.value == 1:
        # The baseline itself: its tokens are the same by identity, not by chance.
        same_top = Estimate(value=1, low=1, high=1)
    return TokenDrift(
        n_prompts=len(scored),
        n_tokens=len(klds),
        mean_kld=clustered_mean(kld_sums, counts, seed=seed, draws=draws, least=0),
        median_kld=float(median),
        p99_kld=float(p99),
        p999_kld=float(p999),
        max_kld=float(largest),
        kld_error=float(np.mean(np.concatenate([answer.kld_error for answer in scored]))),
        same_top_token=same_top,
        mean_delta_p=float(delta_p.mean()),
        rms_delta_p=float(np.sqrt((delta_p**2).mean())),
        perplexity_ratio=clustered_ratio(losses, counts, seed=seed, draws=draws),
        kld_quantiles=[float(value) for value in np.quantile(klds, np.linspace(0, 1, 101))],
    )


def _by_cluster(
    scored: Sequence[ScoredAnswer], value: Callable[[ScoredAnswer], float]
) -> list[float]:
    """Return the sum of a value over each cluster's answers."""
    sums: dict[str, float] = {}
    for answer in scored:
        sums[answer.cluster] = sums.get(answer.cluster, 0.0) + float(value(answer))
    return list(sums.values())


def vision_drift(
    rows: Iterable[tuple[str, NDArray[np.float32], NDArray[np.float32]]],
) -> VisionDrift | None:
    """Return how far visual tokens are from the baseline's; None where there is no image.

    Args:
        rows: name, baseline's and level's [n_tokens, n_embd] of one image after the other; one
            image's rows are in memory at a time.

    Raises:
        DriftError: an image has rows of another number or length; numbers that are none.
    """
    n_images = n_tokens = 0
    cosine_sum = error_sum = 0.0
    worst, worst_image = np.inf, ""
    for name, base, level in rows:
        if base.shape != level.shape:
            raise DriftError(
                f"`{name}` has {_size(level)} at this projector, {_size(base)} at the baseline's",
                hint="give projectors of one model",
            )
        found = cosines(level, base)
        if not np.isfinite(found).all():
            raise DriftError(
                f"the projector's output for `{name}` is no numbers",
                hint="a tensor of this file overflows: `edgevlm verify` finds it",
            )
        n_images += 1
        n_tokens += len(found)
        cosine_sum += float(found.sum())
        error_sum += float(row_errors(level, base).sum())
        if len(found) and found.min() < worst:
            worst, worst_image = float(found.min()), name
    if not n_tokens:
        return None
    return VisionDrift(
        n_images=n_images,
        n_tokens=n_tokens,
        mean_cosine=cosine_sum / n_tokens,
        min_cosine=worst,
        mean_relative_error=error_sum / n_tokens,
        worst_image=worst_image,
    )


def _size(rows: NDArray[np.float32]) -> str:
    return f"{rows.shape[0]} visual tokens of {rows.shape[-1]}"
