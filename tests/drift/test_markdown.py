from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from edgevlm.drift.markdown import escape, render_markdown
from tests.drift.made_report import LEVELS, NASTY_MODEL, NASTY_PROMPT, RTL, made_report

GFM = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NASTY = [
    NASTY_MODEL,
    NASTY_PROMPT,
    RTL,
    "a|b",
    "Q4_K_M _x_ __y__ *z* ~~s~~",
    "[x](https://evil.example) ![y](z) <b>&lt;</b> &amp;",
    "\\| trailing \\",
    "`code` ``more``",
    "line\nbreak\n\n# heading\n- item",
    "@someone www.evil.example mailto:x@y",
    "$x^2$",
]


@pytest.mark.parametrize("text", NASTY)
def test_escape_shows_exactly_the_text(text: str) -> None:
    (inline,) = [token for token in GFM.parse(f"a {escape(text)} z") if token.type == "inline"]
    assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    shown = "".join(child.content for child in inline.children or [])
    assert shown == f"a {' '.join(text.split())} z"


def test_levels_keep_their_plain_names() -> None:
    assert escape("Q4_K_M") == "Q4_K_M"


@pytest.mark.parametrize("name", ["a|b", "`|`", "x\ny", "\\"])
def test_a_table_stays_one(name: str) -> None:
    page = GFM.render(render_markdown(made_report(levels=("F16", name), layers=False)))
    assert page.count("<tr>") == 3
    assert len(re.findall("<td[ >]", page)) == 2 * len(re.findall("<th[ >]", page)) > 0


def test_the_table() -> None:
    text = render_markdown(made_report())
    assert text.startswith("Q8_0, Q6_K, Q5_K_M and Q4_K_M stay within their limits")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[2:]] == list(LEVELS)
    assert rows[6][3].startswith("0.0241 (0.0198")
    assert rows[6][-1] == "within limits |"
    assert rows[8][-1] == "**too much drift** |"


def test_columns_without_a_number_are_left_out() -> None:
    assert "right answers" in render_markdown(made_report())
    assert "right answers" not in render_markdown(made_report(tasks=False))
