from __future__ import annotations

import pytest

from edgevlm.drift import wording
from edgevlm.drift.report import Estimate
from edgevlm.drift.tables import glance, numbers
from tests.drift.made_report import made_report


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (4.21e-12, "4.2e-12"),
        (4.21e-5, "4.2e-5"),
        (0.00061, "0.00061"),
        (0.012345, "0.0123"),
        (0.456, "0.456"),
        (1.2345, "1.23"),
        (39.47, "39.5"),
        (1234.5, "1234"),
    ],
)
def test_kld(value: float, expected: str) -> None:
    assert wording.kld(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, "0 %"), (1, "100 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0.9123, "91.2 %")],
)
def test_percent_is_whole_only_where_it_is(share: float, expected: str) -> None:
    assert wording.percent(share) == expected


def test_span() -> None:
    assert wording.span(Estimate(value=0.9, low=0.85, high=0.95), wording.percent) == (
        "85.0\N{EN DASH}95.0 %"
    )


def test_clean_shows_what_hides() -> None:
    assert wording.clean("a\x00b\x1b[31m\u202e\ud800é\n👩\u200d🚀") == (
        "a\\x00b\\x1b[31m\\u202e\\ud800é\n👩\u200d🚀"
    )


@pytest.mark.parametrize(
    ("levels", "limits", "expected"),
    [
        (("F16",), True, "Only the baseline F16"),
        (("F16", "Q8_0"), True, "Q8_0 stays within its limits."),
        (("F16", "Q8_0", "Q6_K"), True, "All 2 levels stay within their limits."),
        (("F16", "Q8_0"), False, "No limits were set"),
    ],
)
def test_verdict(levels: tuple[str, ...], limits: bool, expected: str) -> None:
    sentences = wording.verdict_sentences(made_report(levels=levels, limits=limits))
    assert sentences[0].startswith(expected)


def test_the_smallest_level_within_limits_is_named() -> None:
    report = made_report()
    best = wording.best_level(report)
    assert best is not None
    assert best.level == "Q4_K_M"
    assert wording.verdict_sentences(report)[1].startswith("The smallest within them is Q4_K_M: ")


def test_a_score_that_rises_is_within_noise() -> None:
    rows = {row.level: row for row in glance(made_report())}
    assert rows["Q6_K"].accuracy.text == "92.0 %"  # one more than the baseline
    assert rows["Q6_K"].accuracy.note == "within noise"
    assert rows["Q2_K"].accuracy.note == "\N{MINUS SIGN}22.0 points, p = 0.004"


def test_every_row_of_all_numbers_has_a_cell_a_level() -> None:
    report = made_report(tasks=False)
    for group in numbers(report):
        for row in group.rows:
            assert len(row.cells) == len(report.levels), row.name
            assert all(cell.note for cell in row.cells if cell.missing), row.name
