"""Answers beside each other, and beside what is right."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from edgevlm.drift.answers import (
    AnswerPair,
    ScoredTask,
    answer_drift,
    compare_answers,
    edit_similarity,
    first_difference,
    has_loop,
    is_right,
    task_drift,
    token_f1,
)
from edgevlm.drift.report import Kind, TaskDrift


def plain_edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's distance, row by row."""
    above = list(range(len(b) + 1))
    for i, one in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
        above = row
    return above[-1]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("kitten", "sitting", 1 - 3 / 7),
        ("flaw", "lawn", 1 - 2 / 4),
        ("", "", 1),
        ("", "abc", 0),
        ("abc", "abc", 1),
        ("a  b\n c ", "a b c", 1),
        ("abc", "xyz", 0),
        ("été", "ete", 1 - 2 / 3),
    ],
)
def test_edits_by_hand(one: str, other: str, expected: float) -> None:
    assert edit_similarity(one, other) == pytest.approx(expected)
    assert edit_similarity(other, one) == pytest.approx(expected)


def test_edits_are_levenshteins() -> None:
    draw = random.Random(0)
    for _ in range(400):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(1, 30))) for _ in range(2))
        longer = max(len(a), len(b))
        assert edit_similarity(a, b) == pytest.approx(1 - plain_edits(a, b) / longer)
    # Columns beyond one machine word.
    text = "".join(draw.choices("abcdefgh", k=300))
    for _ in range(10):
        edited = list(text)
        for _ in range(draw.randrange(40)):
            edited[draw.randrange(len(edited))] = draw.choice("xyz")
            del edited[draw.randrange(len(edited))]
        expected = 1 - plain_edits(text, edited) / 300
        assert edit_similarity(text, "".join(edited)) == pytest.approx(expected)


def test_long_texts_take_milliseconds() -> None:
    draw = random.Random(1)
    one, other = ("".join(draw.choices("abcdefghij", k=2000)) for _ in range(2))
    seconds = min(_seconds(one, other) for _ in range(3))
    assert seconds < 0.1
    # Beyond 20,000 letters nothing is compared: no text takes long.
    assert edit_similarity("a" * 20_000 + "b" * 10**6, "a" * 20_000) == 1


def _seconds(one: str, other: str) -> float:
    start = time.process_time()
    edit_similarity(one, other)
    return time.process_time() - start


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a red cat", "A red dog.", 2 / 3),
        ("red red", "red", 2 / 3),
        ("", "", 1),
        ("...", "!", 1),
        ("", "red", 0),
        ("one two", "two one", 1),
        ("红色圆形", "红色方形", 3 / 4),
        ("ラベルA1", "ラベル B2", 3 / 4),
    ],
)
def test_words_by_hand(one: str, other: str, expected: float) -> None:
    assert token_f1(one, other) == pytest.approx(expected)
    assert token_f1(other, one) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("base", "level", "expected"),
    [
        ("Yes.", "Yes.", "exact"),
        ("", "", "exact"),
        ("Yes.", "yes", "similar"),
        ("Yes.", "Yes. ", "similar"),
        ("Yes, it is red.", "Yes it is red", "similar"),
        ("Yes", "No", "different"),
        ("3", "4", "different"),
        ("two red circles", "two blue circles", "different"),
        ("There are 3 red circles here.", "There are 4 red circles here.", "different"),
        ("the cat sees the dog", "the dog sees the cat", "different"),
        ("红色圆形", "红色方形", "different"),
        ("", "Yes", "different"),
    ],
)
def test_short_answers_keep_every_word(base: str, level: str, expected: Kind) -> None:
    assert compare_answers(base, level) == expected


STREET = (
    "The image depicts a bustling city street with a yellow taxi in the foreground. The taxi is "
    "driving on the road, and there are several pedestrians walking on the sidewalk. In the "
    "background, there are tall buildings with many windows."
)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (STREET.replace("yellow", "green"), "similar"),
        (STREET.split(" In the background")[0] + " The buildings behind are tall.", "similar"),
        (
            "The image shows a busy street in a city, with a yellow taxi in front. Several "
            "pedestrians are walking on the sidewalk, and tall buildings with many windows are "
            "visible in the background.",
            "similar",
        ),
        (
            "The image depicts a quiet country road with a red tractor in the foreground. The "
            "tractor is parked on the grass, and there are two cows standing in the field. In the "
            "background, there are green hills with some trees.",
            "different",
        ),
        ("A kitten is sleeping on a soft blanket next to a cup of coffee.", "different"),
        (STREET.split(".")[0] + ".", "different"),
        (STREET + " The taxi is driving on the road." * 12, "different"),
        (" ".join(reversed(STREET.split())), "different"),
    ],
)
def test_descriptions_may_be_worded_in_another_way(level: str, expected: Kind) -> None:
    assert compare_answers(STREET, level) == expected
    assert compare_answers(level, STREET) == expected


def test_limits_are_the_callers() -> None:
    level = STREET.split(".")[0] + "."
    edit, f1 = edit_similarity(STREET, level), token_f1(STREET, level)
    assert compare_answers(STREET, level, similar_edit=edit - 0.01, similar_f1=f1) == "similar"
    assert compare_answers(STREET, level, similar_edit=edit + 0.01, similar_f1=f1) == "different"
    assert compare_answers(STREET, level, similar_edit=0, similar_f1=f1 + 0.01) == "different"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([], [], None),
        ([1, 2, 3], [1, 5, 3], 1),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [], 0),
    ],
)
def test_the_first_differing_token(one: list[int], other: list[int], expected: int | None) -> None:
    assert first_difference(one, other) == expected
    assert first_difference(tuple(other), one) == expected


def test_loops() -> None:
    assert has_loop([1, 2, *([7, 8, 9] * 30)])
    assert not has_loop([*range(200)])
    assert not has_loop([])


@pytest.mark.parametrize(
    ("answer", "expected", "keywords", "right"),
    [
        ("Red.", "red", (), True),
        (" red \n", "Red.", (), True),
        ("dark  red", "dark red", (), True),
        ("red..", "red", (), False),
        ("It is red.", "red", (), False),
        ("", "red", (), False),
        ("A RED circle, and a square.", None, ("red", "Square"), True),
        ("A red circle.", None, ("red", "square"), False),
        ("The colour is bored.", None, ("red",), False),
        ("There are 12.", None, ("2",), False),
        ("It costs $5.00 now", None, ("$5.00",), True),
        ("It costs $5.001", None, ("$5.00",), False),
        ("a new  York\nstreet", None, ("new york",), True),
        ("C++ is meant", None, ("c++",), True),
        ("It is crimson.", "red", ("crimson",), True),
        ("red", "red", ("crimson",), True),
        ("blue", "red", ("crimson",), False),
    ],
)
def test_right_answers(
    answer: str, expected: str | None, keywords: tuple[str, ...], right: bool
) -> None:
    assert is_right(answer, expected, keywords) is right


def test_nothing_expected_cannot_be_right() -> None:
    with pytest.raises(ValueError, match="cannot be scored"):
        is_right("red", None, ())


def pair(kind: Kind, *, cluster: str, first: int | None = None, n: int = 10) -> AnswerPair:
    return AnswerPair(
        cluster=cluster,
        kind=kind,
        first_difference=first,
        n_base_tokens=10,
        n_level_tokens=n,
        has_loop=n > 50,
    )


def test_answers_by_hand() -> None:
    pairs = [
        pair("exact", cluster="a"),
        pair("exact", cluster="b"),
        pair("similar", cluster="b", first=8),
        pair("different", cluster="c", first=2, n=60),
        pair("different", cluster="c", first=3, n=5),
    ]
    found = answer_drift(pairs, seed=0)
    assert (found.n, found.exact, found.similar, found.different) == (5, 2, 1, 2)
    assert found.share_different.value == pytest.approx(0.4)
    assert 0 <= found.share_different.low < 0.4 < found.share_different.high <= 1
    assert found.first_differing_token == 3
    assert found.length_ratio == pytest.approx((1 + 1 + 1 + 6 + 0.5) / 5)
    assert found.n_loops == 1


def test_no_answer_says_nothing() -> None:
    found = answer_drift([], seed=0)
    assert (found.n, found.share_different.low, found.share_different.high) == (0, 0, 1)


def test_what_was_not_measured_is_none() -> None:
    none = AnswerPair(
        cluster="a",
        kind="exact",
        first_difference=None,
        n_base_tokens=0,
        n_level_tokens=0,
        has_loop=False,
    )
    found = answer_drift([none], seed=0)
    assert found.first_differing_token is None
    assert found.length_ratio is None
    assert found.share_different.value == 0
    assert found.share_different.high > 0.5


def tasks(flips: Sequence[tuple[int, int]], *, kind: str = "colour") -> list[ScoredTask]:
    return [
        ScoredTask(cluster=str(n), kind=kind, base_right=bool(base), level_right=bool(level))
        for n, (base, level) in enumerate(flips)
    ]


def drift(scored: Sequence[ScoredTask]) -> TaskDrift:
    found = task_drift(scored, seed=0)
    assert found is not None
    return found


def test_tasks_by_hand() -> None:
    scored = [
        *tasks([(1, 1)] * 6 + [(1, 0)] * 3 + [(0, 1)]),
        *tasks([(1, 1), (0, 0)], kind="count"),
    ]
    found = drift(scored)
    assert (found.n, found.n_right) == (12, 8)
    assert found.accuracy.value == pytest.approx(8 / 12)
    assert [(one.kind, one.n, one.n_right) for one in found.by_kind] == [
        ("colour", 10, 7),
        ("count", 2, 1),
    ]
    assert (found.lost, found.gained) == (3, 1)
    # 2 (1 + 4) / 16
    assert found.p_value == 0.625
    assert found.within_noise


def test_a_loss_beyond_noise_is_one() -> None:
    found = drift(tasks([(1, 1)] * 60 + [(1, 0)] * 15 + [(0, 1)] * 2))
    assert not found.within_noise
    assert found.p_value < 0.01


def test_a_score_that_rises_a_little_is_noise() -> None:
    assert drift(tasks([(1, 1)] * 60 + [(0, 1)] * 5 + [(1, 0)] * 2)).within_noise
    assert not drift(tasks([(0, 0)] * 20 + [(0, 1)] * 30)).within_noise


def test_two_lost_questions_are_noise() -> None:
    """Drawn again, two lost questions are two lost questions: the test of flips knows better."""
    found = drift(tasks([(1, 0), (1, 0)]))
    assert found.p_value == 0.5
    assert found.within_noise


def test_one_image_is_noise_whatever_is_asked_of_it() -> None:
    """Twenty questions about one image say nothing of others."""
    scored = [
        ScoredTask(cluster="one", kind="", base_right=True, level_right=False) for _ in range(20)
    ]
    found = drift(scored)
    assert found.p_value < 0.001
    assert found.within_noise


def test_no_change_is_within_noise() -> None:
    found = drift(tasks([(1, 1)] * 5))
    assert (found.lost, found.gained, found.p_value, found.within_noise) == (0, 0, 1, True)
    assert found.accuracy.low < 1


def test_no_task_is_none() -> None:
    assert task_drift([], seed=0) is None
