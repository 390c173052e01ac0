"""docs/families.md says what the results say; the results are of this photo and of all families."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "families.md"
STD = np.array([0.5, 0.25, 0.3])[:, None, None]


def load(name: str) -> Any:
    # The programs import each other by name, as when they are run.
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


preprocessing = load("preprocessing")
RESULTS: dict[str, Any] = json.loads(preprocessing.RESULTS.read_text(encoding="utf-8"))


def side(*sizes: tuple[int, int], n_tokens: int = 2, seed: int = 1) -> Any:
    """Return tiles of these (height, width) and embeddings."""
    rng = np.random.default_rng(seed)
    tiles = [rng.random((3, *size), dtype=np.float32) for size in sizes]
    return tiles, rng.random((n_tokens, 8), dtype=np.float32)


def test_page_is_made_from_the_results_and_the_converters_families() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = preprocessing.with_tables(page, RESULTS)
    assert page == made, "run `python benchmarks/preprocessing.py --table`"


def test_every_family_was_measured_with_this_photo() -> None:
    known = load("preprocessing_cases")
    cases = known.CASES
    measured = {case.family for case in cases}
    assert measured | set(known.UNMEASURED) == {family.name for family in FAMILIES}
    assert measured.isdisjoint(known.UNMEASURED)
    assert list(RESULTS["cases"]) == [case.name for case in cases]
    sha256 = hashlib.sha256(load("photo").photo().tobytes()).hexdigest()
    assert {case["photo_sha256"] for case in RESULTS["cases"].values()} == {sha256}


def test_only_what_stands_between_the_marks_is_made_anew() -> None:
    names = ("families", "preprocessing", "classes")
    marks = [f"<!-- table {name} -->old<!-- end of {name} -->" for name in names]
    made = preprocessing.with_tables(f"before {' between '.join(marks)} after", RESULTS)
    assert made.startswith("before <!-- table families -->\n\n| family |")
    assert "<!-- end of families --> between <!-- table preprocessing -->\n\n| family |" in made
    assert "<!-- end of preprocessing --> between <!-- table classes -->\n\n| class |" in made
    assert made.endswith("<!-- end of classes --> after")
    assert "old" not in made


def test_page_without_marks() -> None:
    with pytest.raises(SystemExit, match="has no <!-- table families -->"):
        preprocessing.with_tables("a page", RESULTS)


def test_differences_are_in_units_of_1_255() -> None:
    tiles, embeddings = side((4, 6), (4, 6), n_tokens=5)
    moved = [tile.copy() for tile in tiles]
    moved[1][2, 3, 5] += 2 / 255 / STD[2, 0, 0]  # two units, in one value of 144
    found = preprocessing.compare((tiles, embeddings), (moved, embeddings), STD)
    assert found["pixels_max"] == pytest.approx(2, abs=1e-4)
    assert found["pixels_mean"] == pytest.approx(2 / 144, abs=1e-6)
    assert found["pixels_share_beyond_1"] == pytest.approx(1 / 144, abs=1e-6)
    assert found["cosine_min"] == 1


def test_one_unit_is_not_more_than_one() -> None:
    tiles, embeddings = side((4, 6))
    moved = [(tiles[0] + 1 / 255 / STD).astype(np.float32)]
    found = preprocessing.compare((tiles, embeddings), (moved, embeddings), STD)
    assert (found["pixels_max"], found["pixels_share_beyond_1"]) == (pytest.approx(1, abs=1e-4), 0)


def test_cosine_is_that_of_each_token() -> None:
    tiles, embeddings = side((4, 6), n_tokens=3)
    turned = embeddings * np.array([[2], [1], [-1]], dtype=np.float32)
    found = preprocessing.compare((tiles, embeddings), (tiles, turned), STD)
    assert found["cosine_min"] == -1
    assert found["cosine_mean"] == pytest.approx(1 / 3, abs=1e-6)


def case_of(theirs: Any, ours: Any) -> dict[str, Any]:
    compared = preprocessing.compare(theirs, ours, STD)
    return {
        "published": "Some-2B",
        "transformers": preprocessing.describe(*theirs),
        "libmtmd": preprocessing.describe(*ours),
        "photo": compared,
        "scaled beforehand": compared,
    }


def test_other_tiles_are_said_in_words() -> None:
    theirs = side((48, 64), (48, 64), (32, 32), n_tokens=9)
    ours = side((48, 64), n_tokens=3)
    assert preprocessing.cells(case_of(theirs, ours)) == (
        "Some-2B",
        "3 tiles of 64 x 48 and 32 x 32, 9 tokens",
        "64 x 48, 3 tokens",
        "other sizes",
        "another number of tokens",
        "other sizes; another number of tokens",
    )


def test_what_cannot_be_seen_is_never_equal() -> None:
    theirs = side((48, 64))
    cells = preprocessing.cells(case_of(theirs, ([], theirs[1])))
    assert cells[2:] == (
        "not observable, 2 tokens",
        "not observable",
        "equal",
        "not observable; equal",
    )


def test_tokens_one_place_early_are_told() -> None:
    tiles, embeddings = side((48, 64), n_tokens=5)
    cells = preprocessing.cells(case_of((tiles, embeddings), (tiles, np.roll(embeddings, -1, 0))))
    assert cells[3:5] == ("equal", "equal, but one place early")
