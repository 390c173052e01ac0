"""Distances between two sides, against their formulas written out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgevlm.reference_file import Case
from edgevlm.vectors import relative_error
from edgevlm.verify.bounds import BOUNDS, coarser, judge
from edgevlm.verify.metrics import kl_divergence, pixel_difference, same_top
from edgevlm.verify.report import Stage, VerifyReport

THEIRS = np.asarray([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]])
OURS = np.asarray([[0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1]])
LOGITS = np.log(OURS).astype(np.float32) + np.float32(7)


def case(k: int) -> Case:
    order = np.argsort(-THEIRS, axis=1)[:, :k].astype(np.int32)
    kept = np.take_along_axis(THEIRS, order, axis=1)
    return Case(
        name="",
        prompt="",
        images=(),
        input_ids=np.zeros(1, dtype=np.int32),
        answer=order[:, 0],
        top_ids=order,
        top_logprobs=np.log(kept).astype(np.float32),
        tail_mass=(1 - kept.sum(axis=1)).astype(np.float32),
    )


def test_all_tokens_give_the_divergence() -> None:
    expected = (THEIRS * np.log(THEIRS / OURS)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(case(4), LOGITS), expected, atol=1e-6)


def test_some_tokens_and_a_tail_give_that_of_both() -> None:
    """{0.5, 0.25, rest} beside {0.4, 0.3, rest}: never more than the whole."""
    found = kl_divergence(case(2), LOGITS)
    expected = 0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.3)
    expected += 0.25 * math.log(0.25 / 0.3)
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert (found <= kl_divergence(case(4), LOGITS) + 1e-6).all()


def test_equal_sides_are_at_zero() -> None:
    logits = np.log(THEIRS).astype(np.float32)
    found = kl_divergence(case(4), logits)
    assert (found >= 0).all()
    assert found.max() < 1e-6
    assert same_top(case(4), logits).all()
    assert same_top(case(4), LOGITS).tolist() == [True, False]


def test_another_mean_and_deviation_are_told_from_another_picture() -> None:
    random = np.random.PCG64(1).random_raw(3 * 16 * 16) % 256
    theirs = (random.reshape(3, 16, 16) / 255).astype(np.float32)
    ours = theirs * np.float32(0.5) + np.float32(0.1)
    found = pixel_difference(ours, theirs)
    assert found.is_rescaled
    np.testing.assert_allclose(found.slope, 0.5, atol=1e-5)
    np.testing.assert_allclose(found.offset, 0.1, atol=1e-5)
    assert not pixel_difference(theirs[:, ::-1].copy(), theirs).is_rescaled
    assert not pixel_difference(theirs, theirs).is_rescaled


def test_an_image_of_one_colour() -> None:
    """Nothing to fit a slope to: an offset is seen all the same."""
    theirs = np.full((3, 4, 4), 0.5, dtype=np.float32)
    assert pixel_difference(theirs, theirs).max_difference == 0
    assert pixel_difference(theirs + np.float32(0.25), theirs).is_rescaled


def test_relative_error_is_that_of_all_values() -> None:
    ones = np.ones((2, 3), dtype=np.float32)
    assert relative_error(ones * np.float32(1.5), ones) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "rising", "expected"),
    [
        (1.0, False, "pass"),
        (1.5, False, "warn"),
        (3.0, False, "fail"),
        (math.nan, False, "fail"),
        (math.nan, True, "fail"),
        (math.inf, False, "fail"),
    ],
)
def test_judge(value: float, rising: bool, expected: str) -> None:
    assert judge(value, (1.0, 2.0), rising=rising) == expected


def test_judge_where_larger_is_better() -> None:
    found = [judge(value, (0.9, 0.5), rising=True) for value in (1.0, 0.6, 0.1)]
    assert found == ["pass", "warn", "fail"]


def test_the_coarser_of_two() -> None:
    assert coarser("F32", "BF16") == coarser("BF16", "F32") == "BF16"
    assert coarser("quantized", "F16") == "quantized"
    for finer, wider in zip(list(BOUNDS.values())[:-1], list(BOUNDS.values())[1:], strict=True):
        assert finer.median_kld < wider.median_kld
        assert finer.relative_error < wider.relative_error


def test_the_document_states_the_bounds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") == 4]
    stated = {cells[0].strip("| "): cells[1:] for cells in rows}
    for name, bounds in BOUNDS.items():
        limits = (bounds.median_kld, bounds.max_kld, bounds.min_cosine, bounds.relative_error)
        assert [_limits(cell) for cell in stated[name]] == [*limits]


def _limits(cell: str) -> tuple[float, ...]:
    """Read "a, b"; a bound that never fails, or that there is none."""
    if cell.strip(" |") == "-":
        return (math.inf, math.inf)
    parts = cell.strip(" |").split(", ")
    return tuple(math.inf if part == "never fails" else float(part) for part in parts)


def test_a_report_is_json() -> None:
    """What is no number becomes null, which JSON has."""
    stage = Stage(name="a", status="fail", summary="", numbers={"kld": math.nan, "n": 3})
    report = VerifyReport(text_file="t", mmproj_file="", against="", stages=(stage,))
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["stages"][0]["numbers"] == {"kld": None, "n": 3}
    assert report.verdict == "fail"
