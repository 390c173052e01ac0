"""A tokenizer.json run by `tokenizers`, and changed to what llama.cpp does in its place."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from tokenizers import Tokenizer

from edgevlm.errors import CheckpointError
from edgevlm_convert.json_file import DAMAGED_HINT
from edgevlm_convert.vocabulary.byte_level import byte_letters
from edgevlm_convert.vocabulary.structure import fields_of, steps_of
from edgevlm_convert.vocabulary.unigram_text import (
    TextSteps,
    check_charsmap,
    normalizer_of,
    replace_characters,
)

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


class ReferenceTokenizer:
    """A tokenizer that gives the right ids for the texts it was made for.

    Args:
        values: a whole tokenizer.json.
        ids: the ids that its own stand for; None: they are the same.
        text: of a unigram model what it does to a text; None: it is none.
        charsmap: a table of characters that are replaced in a text first.
        plain: of a unigram model the characters that stand for byte pieces.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        ids: Sequence[int] | None = None,
        *,
        text: TextSteps | None = None,
        charsmap: bytes = b"",
        plain: Mapping[str, str] | None = None,
    ) -> None:
        self._values = values
        self._ids = ids
        self._text = text
        self._charsmap = charsmap
        self._plain = plain or {}
        self._tokenizer = _tokenizer(values)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of a text; `add_special` adds BOS and EOS as the post-processor does."""
        if self._charsmap:
            text = replace_characters(text, self._charsmap)
        with _reading():
            found = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return found if self._ids is None else [self._ids[number] for number in found]

    def pieces(self, text: str) -> list[tuple[bytes, list[int]]]:
        """Return what the pre-tokenizer cuts a text into, as bytes, and the ids of each piece."""
        bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        cut: Any = self._tokenizer.pre_tokenizer
        found: list[tuple[str, Any]] = cut.pre_tokenize_str(text) if cut is not None else []
        return [
            (
                bytes(bytes_of[letter] for letter in piece),
                [token.id for token in self._tokenizer.model.tokenize(piece)],
            )
            for piece, _ in found
        ]

    @property
    def adds_special(self) -> bool:
        """Whether the post-processor adds any token; transformers may add BOS without it."""
        return self.encode("a", add_special=True) != self.encode("a")

    def without_flags(self) -> ReferenceTokenizer | None:
        """Return it with added tokens found as they stand; None: none has such a flag."""
        entries = cast(list[dict[str, Any]], self._values.get("added_tokens") or [])
        if not any(entry.get(flag) for entry in entries for flag in FLAGS):
            return None
        plain = [entry | dict.fromkeys(FLAGS, False) for entry in entries]
        return self._with(added_tokens=plain)

    def with_expressions(self, expressions: Sequence[str]) -> ReferenceTokenizer:
        """Return it with a byte-level pre-tokenizer that splits at other expressions."""
        steps = [
            {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
            for one in expressions
        ]
        last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        sequence = {"type": "Sequence", "pretokenizers": [*steps, last | {"trim_offsets": True}]}
        return self._with(pre_tokenizer=sequence)

    def with_runtime_spaces(self) -> ReferenceTokenizer | None:
        """Return it with spaces where llama.cpp puts them; None: that is how it is.

        `Metaspace` leaves out the space in front of a text that begins with one.
        """
        if self._text is not None:
            text = replace(self._text, charsmap=b"" if self._charsmap else self._text.charsmap)
            return self._with(normalizer=normalizer_of(text, runtime=True), pre_tokenizer=None)
        step = fields_of(self._values.get("pre_tokenizer"))
        if step.get("type") != "Metaspace" or step.get("prepend_scheme") == "never":
            return None
        prepend = {"type": "Prepend", "prepend": "▁"}
        normalizer = {"type": "Sequence", "normalizers": [prepend, REPLACE_SPACES]}
        return self._with(normalizer=normalizer, pre_tokenizer=None)

    def without_byte_fallback(self) -> ReferenceTokenizer | None:
        """Return it with unknown characters instead of bytes; None: that is how it is.

        Bytes that are written as characters are found.
        """
        model = fields_of(self._values.get("model"))
        if not self.is_unigram or not model.get("byte_fallback"):
            return None
        pieces = cast(list[tuple[str, float]], model["vocab"])
        lowest = min(score for _, score in pieces)
        vocab = [
            (self._plain[piece], lowest) if piece in self._plain else (piece, score)
            for piece, score in pieces
        ]
        return self._with(model=model | {"byte_fallback": False, "vocab": vocab})

    @property
    def is_unigram(self) -> bool:
        """Whether its model is unigram."""
        return self._text is not None

    def with_runtime_table(self) -> ReferenceTokenizer | None:
        """Return it with characters replaced as llama.cpp does; None: none are.

        `tokenizers` replaces whole graphemes, or the shortest match.
        """
        charsmap = self._text.charsmap if self._text else b""
        if not charsmap:
            return None
        check_charsmap(charsmap)
        steps = steps_of(self._values.get("normalizer"))
        others = [step for step in steps if step.get("type") != "Precompiled"]
        normalizer = {"type": "Sequence", "normalizers": others} if others else None
        values = {**self._values, "normalizer": normalizer}
        return ReferenceTokenizer(
            values, self._ids, text=self._text, charsmap=charsmap, plain=self._plain
        )

    def _with(self, **values: Any) -> ReferenceTokenizer:
        return ReferenceTokenizer(
            {**self._values, **values},
            self._ids,
            text=self._text,
            charsmap=self._charsmap,
            plain=self._plain,
        )


def normalized(values: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    """Return texts as the normalizer of a tokenizer.json leaves them: pieces are parts of those."""
    alone = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}
    empty = _tokenizer({"version": "1.0", "normalizer": values.get("normalizer"), "model": alone})
    found = empty.normalizer
    if found is None:
        return []
    with _reading():
        return [found.normalize_str(text) for text in texts]


def _tokenizer(values: Mapping[str, Any]) -> Tokenizer:
    with _reading():
        return Tokenizer.from_str(json.dumps(values))


@contextmanager
def _reading() -> Generator[None]:
    """Turn what `tokenizers` raises into an error about the file that it was given."""
    try:
        yield
    except BaseException as error:
        # It knows no type of its own; its panics have a private one, outside of Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"`tokenizers` cannot read tokenizer.json: {str(error)[:200]}", hint=DAMAGED_HINT
        ) from error
