"""The table of transformers' image-text classes: complete, its "yes" the converter's."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.families import FAMILIES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> Any:
    # The programs import each other by name, as when they are run.
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


program = load("image_text_classes")
page = load("page")
DATA: dict[str, Any] = program.read_data()
PARTS = ("graphs", "reasons", "other classes")


def test_page_is_what_the_program_makes() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    made = page.with_table(text, program.NAME, program.table(DATA))
    assert text == made, "run `python benchmarks/image_text_classes.py`"


def test_no_class_that_a_family_takes_has_a_reason_not_to() -> None:
    taken = {name for family in FAMILIES for name in family.architectures}
    left = [name for part in PARTS for name in DATA[part] if name in taken]
    assert not left, "run `python benchmarks/image_text_classes.py`"


def test_every_class_is_there_once_and_no_other() -> None:
    listed = set(DATA["classes"].values())
    assert len(DATA["classes"]) == 97
    taken = {name for family in FAMILIES for name in family.architectures}
    said = [*DATA["graphs"], *DATA["reasons"], *(taken & listed)]
    assert sorted(said) == sorted(listed)
    assert not listed & set(DATA["other classes"])


def test_a_class_that_a_family_takes_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(DATA["graphs"]))
    monkeypatch.setattr(program, "takers", lambda: {name: ["a_family"]})
    assert name not in program.without_taken(DATA)["graphs"]
    assert program.verdict(name, program.takers(), DATA) == ("yes", "family `a_family`")


def test_a_class_without_a_word_is_an_error() -> None:
    with pytest.raises(SystemExit, match="neither a graph nor a reason for Unheard"):
        program.verdict("Unheard", {}, DATA)


def test_another_list_of_classes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout='["6.0", {"new": "NewClass"}]')

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"transformers 6\.0 has other classes.*NewClass"):
        program.check_list(DATA, Path("python"))
