"""docs/families.md and the tables in it that programs make anew."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(page: str, name: str, text: str) -> str:
    """Return the page with what stands between the marks of one table made anew.

    Raises:
        SystemExit: the page has no such marks.
    """
    begin, end = (f"<!-- {word} {name} -->" for word in ("table", "end of"))
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"error: {PAGE} has no {begin} ... {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
