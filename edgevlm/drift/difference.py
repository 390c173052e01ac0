"""Where two answers part: what they share, the first word that differs, and the rest."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

# A word is marked as a whole, but for scripts without spaces and for words beyond all reason.
_MOST_OF_A_WORD = 24
_JOINER = "\u200d"


@dataclass(frozen=True, kw_only=True)
class Parted:
    """An answer in three pieces, which together are the answer.

    Attributes:
        same: as the other answer begins, and the space after it.
        mark: the first word that differs; empty: the answer ends where the other goes on, or both
            are the same.
        rest: what follows.
    """

    same: str
    mark: str
    rest: str


def part(first: str, second: str) -> tuple[Parted, Parted]:
    """Split two answers at their first difference."""
    if first == second:
        return Parted(same=first, mark="", rest=""), Parted(same=second, mark="", rest="")
    n_same = 0
    while n_same < min(len(first), len(second)) and first[n_same] == second[n_same]:
        n_same += 1
    start = _start(first, second, n_same)
    return _parted(first, start), _parted(second, start)


def _start(first: str, second: str, n_same: int) -> int:
    """Go back from the first differing character to where its word begins."""
    if not any(text[n_same : n_same + 1].strip() for text in (first, second)):
        return n_same
    start = n_same
    while start and not _ends_word(first[start - 1]):
        start -= 1
        if n_same - start > _MOST_OF_A_WORD:
            return _whole_character(first, second, n_same)
    return start


def _ends_word(character: str) -> bool:
    """Whether a word ends here: at a space, or with each character of a script without spaces."""
    return character.isspace() or unicodedata.east_asian_width(character) in "WF"


def _whole_character(first: str, second: str, n_same: int) -> int:
    """Go back to a character that no combining mark before the difference belongs to."""
    start = n_same
    while start and any(_continues(text, start) for text in (first, second)):
        start -= 1
    return start


def _continues(text: str, index: int) -> bool:
    if index >= len(text):
        return False
    character = text[index]
    joined = _JOINER in (character, text[index - 1])
    return joined or unicodedata.category(character).startswith("M")


def _parted(text: str, start: int) -> Parted:
    while start < len(text) and text[start].isspace():
        start += 1
    end = start + (start < len(text))
    while end < len(text) and not _ends_word(text[end]) and not _ends_word(text[end - 1]):
        end += 1
        if end - start == _MOST_OF_A_WORD:
            break
    while end < len(text) and _continues(text, end):
        end += 1
    return Parted(same=text[:start], mark=text[start:end], rest=text[end:])
