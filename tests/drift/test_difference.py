from __future__ import annotations

import pytest

from edgevlm.drift.difference import part


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a red cat", "a red car", (("a red ", "cat", ""), ("a red ", "car", ""))),
        ("one two", "one 2 two", (("one ", "two", ""), ("one ", "2", " two"))),
        ("Yes.", "Yes. It is", (("Yes.", "", ""), ("Yes. ", "It", " is"))),
        ("cat", "cats here", (("", "cat", ""), ("", "cats", " here"))),
        ("", "all", (("", "", ""), ("", "all", ""))),
        ("same", "same", (("same", "", ""), ("same", "", ""))),
        ("有四个形状", "有三个形状", (("有", "四", "个形状"), ("有", "三", "个形状"))),
        # Beyond all reason for a word: marked from where it differs, for a while.
        (
            "x" * 40 + "a" * 40,
            "x" * 40 + "b",
            (("x" * 40, "a" * 24, "a" * 16), ("x" * 40, "b", "")),
        ),
        # An accent stays with its letter.
        (
            "x" * 40 + "e\u0301",
            "x" * 40 + "e",
            (("x" * 40, "e\u0301", ""), ("x" * 40, "e", "")),
        ),
    ],
)
def test_parted(
    first: str, second: str, expected: tuple[tuple[str, str, str], tuple[str, str, str]]
) -> None:
    found = part(first, second)
    assert [(one.same, one.mark, one.rest) for one in found] == list(expected)
    assert ["".join((one.same, one.mark, one.rest)) for one in found] == [first, second]
