"""500 texts on which two tokenizers must agree: fixed, in groups, no two alike.

Where tokenizers differ is known from their bugs: digits, case, apostrophes, line ends and other
spaces, marks that combine, characters of several bytes, and special tokens inside of text. Texts
that are written by hand are in probes.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product

N_PROBES = 500
# Added tokens that take part, the first ones by id.
_MAX_TOKENS = 12
_MAX_LENGTH = 200
# Characters of Unicode 16.
NEWER_UNICODE = "newer unicode"
_NUMBERS = ("0", "7", "42", "100", "1000", "12345", "123456", "3.14", "1,000,000", "2024-01-31")
_AROUND_NUMBERS = ("{}", " {}", "{} {}", "a{}b", "-{}", "${}.00", "{}\n")
_SPACES = (" ", "  ", "   ", "    ", " " * 8, "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", " \n ")
_AROUND_SPACES = ("{}", "a{}b", "a{}", "{}b", "1{}2", "!{}(")
_OTHER_SPACES = ("\u00a0", "\u3000", "\u2003", "\u2028", "\u0085", "\x0b", "\x0c", "\u205f")
_AROUND_OTHER_SPACES = ("{}", "a{}b", "{}{}1")
_AROUND_TOKENS = (
    "{0}", "a{0}b", "{0}{1}", "{0} {1}", " {0} ", "{0}\n{1}\n", "{0}1", "x {1}y", "{0}{0}{0}",
    "\n\n{1}", "the{0} the", "{1}.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One text.

    Attributes:
        group: what it is about.
        text: itself.
    """

    group: str
    text: str


def probes(added: Sequence[str]) -> list[Probe]:
    """Return the 500 texts.

    Args:
        added: the vocabulary's added tokens in order, for the texts that hold some; of a
            vocabulary without any, tokens of others stand there as plain text.
    """
    written = files("edgevlm_convert.vocabulary").joinpath("probes.json")
    groups: dict[str, Sequence[str]] = json.loads(written.read_text(encoding="utf-8"))
    groups |= {
        "numbers": _filled(_NUMBERS, _AROUND_NUMBERS),
        "white space": _filled(_SPACES, _AROUND_SPACES),
        "other spaces": _filled(_OTHER_SPACES, _AROUND_OTHER_SPACES),
    }
    found = [Probe(group=group, text=text) for group, texts in groups.items() for text in texts]
    tokens = [token for token in added if token.strip() and len(token) <= _MAX_LENGTH] or [
        "<s>",
        "<|im_end|>",
    ]
    taken = {probe.text for probe in found}
    for text in _with_tokens(tokens[:_MAX_TOKENS]):
        if len(found) < N_PROBES and text not in taken:
            taken.add(text)
            found.append(Probe(group="special tokens", text=text))
    return found


def _filled(texts: Sequence[str], shapes: Sequence[str]) -> list[str]:
    return [shape.replace("{}", text) for text, shape in product(texts, shapes)]


def _with_tokens(tokens: Sequence[str]) -> Iterator[str]:
    """Yield texts with tokens in them, more than are needed."""
    for turn in range(N_PROBES):
        shape = _AROUND_TOKENS[turn % len(_AROUND_TOKENS)]
        first = tokens[turn % len(tokens)]
        second = tokens[(turn * 5 + turn // len(tokens) + 1) % len(tokens)]
        text = shape.replace("{0}", first).replace("{1}", second)
        # Few tokens give the same texts again.
        yield text if turn < len(_AROUND_TOKENS) * len(tokens) else f"{turn} {text}"
