"""Drift of tokens and of visual tokens, against numbers written out."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.drift.kept_rows import diverge, keep_rows, token_logprobs
from edgevlm.drift.metrics import ScoredAnswer, token_drift, vision_drift
from edgevlm.drift.report import TokenDrift
from edgevlm.errors import DriftError
from edgevlm.vectors import row_errors
from tests.drift import by_scipy

Logits = NDArray[np.float32]


def answer(
    kld: Sequence[float], *, cluster: str = "a", base: float = 0.5, level: float = 0.25
) -> ScoredAnswer:
    n = len(kld)
    return ScoredAnswer(
        cluster=cluster,
        is_image=True,
        kld=np.asarray(kld, dtype=np.float64),
        kld_error=np.full(n, 1e-6),
        same_top=np.asarray([value < 0.5 for value in kld], dtype=np.bool_),
        p_level=np.full(n, level),
        p_base=np.full(n, base),
        logprob_level=np.full(n, math.log(level)),
        logprob_base=np.full(n, math.log(base)),
    )


def scored(base: Logits, level: Logits, tokens: NDArray[np.int64], cluster: str) -> ScoredAnswer:
    found = diverge(keep_rows(base), level)
    logprob_level, logprob_base = token_logprobs(level, tokens), token_logprobs(base, tokens)
    return ScoredAnswer(
        cluster=cluster,
        is_image=False,
        kld=found.kld,
        kld_error=found.kld_error,
        same_top=found.same_top,
        p_level=np.exp(logprob_level),
        p_base=np.exp(logprob_base),
        logprob_level=logprob_level,
        logprob_base=logprob_base,
    )


def drift(answers: Sequence[ScoredAnswer]) -> TokenDrift:
    found = token_drift(answers, seed=0, draws=500)
    assert found is not None
    return found


def test_numbers_by_hand() -> None:
    found = drift(
        [answer([0.0, 0.1, 0.2]), answer([1.0], base=0.25, level=0.5), answer([0.3], cluster="b")]
    )
    assert (found.n_prompts, found.n_tokens) == (3, 5)
    assert found.mean_kld.value == pytest.approx(1.6 / 5)
    assert found.median_kld == pytest.approx(0.2)
    # Order statistics 0, 0.1, 0.2, 0.3, 1: the 99th percentile stands at place 3.96.
    assert found.p99_kld == pytest.approx(0.3 + 0.96 * 0.7)
    assert found.p999_kld == pytest.approx(0.3 + 0.996 * 0.7)
    assert found.max_kld == 1
    assert found.kld_error == pytest.approx(1e-6)
    assert found.same_top_token.value == pytest.approx(0.8)
    assert found.mean_delta_p == pytest.approx((4 * -0.25 + 0.25) / 5)
    assert found.rms_delta_p == pytest.approx(0.25)
    # Four tokens half as likely, one twice: 2^(3/5).
    assert found.perplexity_ratio.value == pytest.approx(2**0.6)
    assert len(found.kld_quantiles) == 101
    assert found.kld_quantiles[::25] == pytest.approx([0, 0.1, 0.2, 0.3, 1])


def test_the_ratio_is_that_of_perplexities() -> None:
    """A level that finds the tokens less likely has the higher perplexity."""
    random = np.random.default_rng(0)
    base = random.normal(0, 2, (40, 50)).astype(np.float32)
    level = (base + random.normal(0, 0.5, base.shape)).astype(np.float32)
    tokens = base.argmax(axis=1)
    rows = np.arange(40)
    perplexity = [np.exp(-by_scipy.logprobs(side)[rows, tokens].mean()) for side in (level, base)]
    found = drift([scored(base, level, tokens, "a")])
    assert found.perplexity_ratio.value == pytest.approx(perplexity[0] / perplexity[1], rel=1e-5)
    assert found.mean_kld.value == pytest.approx(by_scipy.kld(base, level).mean(), rel=1e-4)
    assert found.perplexity_ratio.value > 1 > found.same_top_token.value
    assert found.mean_delta_p < 0


def test_the_baseline_beside_itself_is_exactly_at_zero() -> None:
    random = np.random.default_rng(1)
    answers: list[ScoredAnswer] = []
    for number in range(6):
        base = random.normal(0, 3, (9, 400)).astype(np.float32)
        answers.append(scored(base, base, random.integers(400, size=9), str(number % 4)))
    found = drift(answers)
    zeros = (found.mean_kld.value, found.mean_kld.low, found.mean_kld.high, found.max_kld)
    assert zeros == (0, 0, 0, 0)
    assert (found.mean_delta_p, found.rms_delta_p) == (0, 0)
    for one in (found.same_top_token, found.perplexity_ratio):
        assert (one.value, one.low, one.high) == (1, 1, 1)


def test_a_level_that_agrees_everywhere_is_not_certain_to() -> None:
    found = drift([answer([0.1] * 50, cluster=str(n)) for n in range(4)])
    assert found.same_top_token.value == found.same_top_token.high == 1
    assert 0.97 < found.same_top_token.low < 0.99


def test_answers_about_one_image_are_one_cluster() -> None:
    """Ten prompts about two images say less than ten about ten."""
    klds = [0.1] * 5 + [0.3] * 5
    together = drift([answer([kld], cluster=str(n // 5)) for n, kld in enumerate(klds)])
    apart = drift([answer([kld], cluster=str(n)) for n, kld in enumerate(klds)])
    assert together.mean_kld.value == pytest.approx(apart.mean_kld.value)
    widths = [one.mean_kld.high - one.mean_kld.low for one in (together, apart)]
    assert widths[0] > 2 * widths[1]


def test_nothing_scored_is_none() -> None:
    assert token_drift([], seed=0) is None
    assert token_drift([answer([])], seed=0) is None
    assert drift([answer([]), answer([0.5])]).n_prompts == 1


def rotated(rows: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    angle = math.radians(degrees)
    turn = np.asarray([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (rows.astype(np.float64) @ turn).astype(np.float32)


def test_visual_tokens_by_hand() -> None:
    """Turned by 60 degrees a row is as far away as it is long; the longer rows count no more."""
    one = np.asarray([[1, 0], [0, 50]], dtype=np.float32)
    other = np.asarray([[2, 0]], dtype=np.float32)
    found = vision_drift(
        [("same.png", one, one), ("turned.png", other, rotated(other, 60)), ("b.png", one, one)]
    )
    assert found is not None
    assert (found.n_images, found.n_tokens) == (3, 5)
    assert found.mean_cosine == pytest.approx(4.5 / 5)
    assert found.min_cosine == pytest.approx(0.5)
    assert found.mean_relative_error == pytest.approx(1 / 5)
    assert found.worst_image == "turned.png"


def test_one_images_rows_are_there_at_a_time() -> None:
    def images() -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        for number in range(30):
            rows = np.ones((256, 1024), dtype=np.float32)
            yield f"{number}.png", rows, rows * 2

    tracemalloc.start()
    try:
        found = vision_drift(images())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    assert (found.n_images, found.n_tokens) == (30, 30 * 256)
    # Two sides of an image of 1 MiB each, the image before, and both in float64 for a moment.
    assert peak < 16 << 20


def test_no_image_is_none() -> None:
    assert vision_drift([]) is None


def test_rows_of_another_projector_are_said() -> None:
    rows = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(DriftError, match=r"`a.png` has 2 visual tokens of 4.*3 visual tokens of 4"):
        vision_drift([("a.png", rows, rows[:2])])
    broken = rows.copy()
    broken[1, 1] = np.nan
    with pytest.raises(DriftError, match=r"`a.png` is no numbers"):
        vision_drift([("a.png", rows, broken)])


def test_errors_are_of_each_row() -> None:
    theirs = np.asarray([[3, 4], [0, 2]], dtype=np.float32)
    assert row_errors(theirs * np.float32(1.5), theirs).tolist() == [0.5, 0.5]
    assert row_errors(theirs[::-1], theirs)[1] == pytest.approx(math.hypot(3, 2) / 2)
