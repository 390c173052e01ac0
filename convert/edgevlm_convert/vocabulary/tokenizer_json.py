"""tokenizer.json, read in pieces: its vocabulary and merges are never in memory as a whole.

Gemma 3's file has 33 MB and half a million merges. Everything but `model.vocab` and `model.merges`
is parsed at once; those two are cut out first, and parsed a piece at a time when asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, cast

from edgevlm.errors import CheckpointError
from edgevlm.files import human_bytes
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, check_regular_file, parse_json_object, quoted
from edgevlm_convert.vocabulary.separate_files import put_together
from edgevlm_convert.vocabulary.tekken import tekken_as_tokenizer_json

FILE = "tokenizer.json"
_MAX_BYTES = 64_000_000
_PIECE_BYTES = 1 << 18
# Gemma 3 has 514,906.
_MAX_MERGES = 1 << 20
_MAX_SCORE = 1e30  # far inside of a 32-bit float
# Possessive: an unfinished string of a hostile file costs one pass and no memory.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb'|["\[\]{}]', re.DOTALL)
# In the list of merges a whole pair is one step.
_PAIR = re.compile(
    rb"\[[^\[\]{}\"]*+(?:" + _STRING + rb"[^\[\]{}\"]*+){0,3}+\]|" + _TOKEN.pattern, re.DOTALL
)
_COLON = re.compile(rb"\s*:")
_MODEL: Final = b'"model"'
_CUT: Final = (b'"vocab"', b'"merges"')


@dataclass(frozen=True, kw_only=True)
class TokenizerJson:
    """A tokenizer.json that was opened.

    Attributes:
        values: all of it; `model.vocab` and `model.merges` are null where they were cut out.
    """

    values: Mapping[str, object]
    _raw: bytes
    _pieces: dict[bytes, list[tuple[int, int]]]

    @property
    def document(self) -> Section:
        """The values, read with type and bounds."""
        return Section(self.values, file=FILE)

    @property
    def model(self) -> Section:
        """Type and options of the model."""
        return self.document.section("model")

    def tokens(self) -> Iterator[tuple[str, int]]:
        """Yield every token of the model and its id: a whole number from 0.

        Raises:
            CheckpointError: they are missing, or one is anything else.
        """
        for piece in self._of(b'"vocab"', "an object of tokens and ids", opening=b"{"):
            found = parse_json_object(b"{" + piece + b"}", where=f"{FILE}: `model.vocab`")
            for token, number in found.items():
                if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                    raise CheckpointError(
                        f"{FILE}: token {quoted(token)} has the id {quoted(str(number)[:40])}",
                        hint=DAMAGED_HINT,
                    )
                yield token, number

    def vocabulary(self) -> dict[str, int]:
        """Return ids by token: no id and no token is there twice.

        Raises:
            CheckpointError: as for `tokens`, or one is there twice.
        """
        ids: dict[str, int] = {}
        for n_before, (token, number) in enumerate(self.tokens()):
            ids[token] = number
            if len(ids) == n_before:
                raise CheckpointError(f"{FILE} gives {quoted(token)} twice", hint=DAMAGED_HINT)
        if not ids:
            self.model.fail("vocab", "an object of tokens and ids")
        if len(set(ids.values())) != len(ids):
            raise CheckpointError(f"{FILE}: two tokens have the same id", hint=DAMAGED_HINT)
        return ids

    def pieces(self) -> Iterator[tuple[str, float]]:
        """Yield every piece of a unigram model and its score, in the order of their ids.

        Raises:
            CheckpointError: they are missing, or one is anything else.
        """
        for piece in self._of(b'"vocab"', "a list of pieces and scores", opening=b"["):
            found = parse_json_object(b'{"vocab":[' + piece + b"]}", where=f"{FILE}: `model.vocab`")
            for entry in cast(list[object], found["vocab"]):
                items = _list_of(entry)
                text, score = items if len(items) == 2 else (None, None)
                if not isinstance(text, str) or not _is_score(score):
                    raise CheckpointError(
                        f"{FILE}: {quoted(str(entry)[:80])} is not a piece and its score",
                        hint=DAMAGED_HINT,
                    )
                yield text, float(cast(float, score))

    def merges(self) -> Iterator[tuple[str, str]]:
        """Yield both parts of every merge, in order.

        Raises:
            CheckpointError: they are missing, too many, or one is not two tokens.
        """
        n_merges = 0
        for piece in self._of(b'"merges"', "a list of merges", opening=b"["):
            found = parse_json_object(
                b'{"merges":[' + piece + b"]}", where=f"{FILE}: `model.merges`"
            )
            merges = cast(list[object], found["merges"])
            n_merges += len(merges)
            if n_merges > _MAX_MERGES:
                raise CheckpointError(
                    f"{FILE} has more than {_MAX_MERGES} merges", hint=DAMAGED_HINT
                )
            for entry in merges:
                yield _pair(entry)

    def _of(self, key: bytes, expected: str, *, opening: bytes) -> Iterator[bytes]:
        """Yield the pieces of one value, their commas cut off."""
        if key not in self._pieces:
            self.model.fail(key.decode().strip('"'), expected)
        pieces = self._pieces[key]
        if self._raw[pieces[0][0] - 1 : pieces[0][0]] != opening:
            self.model.fail(key.decode().strip('"'), expected)
        for number, (start, stop) in enumerate(pieces, 1):
            piece = self._raw[start:stop].rstrip()
            if number < len(pieces):
                if not piece.endswith(b","):
                    _not_json()
                piece = piece[:-1]
            yield piece


def read_tokenizer_json(folder: Path) -> TokenizerJson | None:
    """Return the folder's tokenizer.json, None when there is none.

    Where it is in separate files, or is Mistral's tekken.json, it is put together from these.

    Raises:
        CheckpointError: unreadable, larger than 64 MB, or not one JSON object.
    """
    path = folder / FILE
    raw = _read(path) if path.exists() else put_together(folder) or tekken_as_tokenizer_json(folder)
    if raw is None:
        return None
    pieces = _cut(raw)
    skeleton: list[bytes] = []
    position = 0
    for parts in sorted(pieces.values()):
        # With its brackets, which are one byte each.
        skeleton += [raw[position : parts[0][0] - 1], b"null"]
        position = parts[-1][1] + 1
    skeleton.append(raw[position:])
    document = parse_json_object(b"".join(skeleton), where=f"`{path}`")
    return TokenizerJson(values=document, _raw=raw, _pieces=pieces)


def _read(path: Path) -> bytes:
    size = check_regular_file(path)
    if size > _MAX_BYTES:
        raise CheckpointError(
            f"`{path}` has {human_bytes(size)}, more than the {human_bytes(_MAX_BYTES)} allowed",
            hint=DAMAGED_HINT,
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error


def _cut(raw: bytes) -> dict[bytes, list[tuple[int, int]]]:
    """Return where `model.vocab` and `model.merges` lie, without their brackets, in pieces."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    depth, position, key = 0, 0, b""
    in_model = False
    while match := _TOKEN.search(raw, position):
        position = match.end()
        token = match[0]
        if token[0:1] == b'"':
            if len(token) == 1:
                _not_json()
            if depth <= 2 and _COLON.match(raw, position):
                key = token
        elif token in b"{[":
            if depth == 2 and in_model and key in _CUT and key not in found:
                found[key], position = _pieces(raw, position)
                continue
            in_model = in_model if depth != 1 else key == _MODEL
            depth += 1
        else:
            depth -= 1
    return found


def _pieces(raw: bytes, start: int) -> tuple[list[tuple[int, int]], int]:
    """Return the pieces of a list or object that opens before `start`, and where it is over."""
    pieces: list[tuple[int, int]] = []
    depth, position = 0, start
    while match := _PAIR.search(raw, position):
        position = match.end()
        token = raw[match.start()]
        if depth == 0 and match.start() - start > _PIECE_BYTES and token in b'"[':
            # Before a key, or before a merge: after the comma.
            pieces.append((start, match.start()))
            start = match.start()
        if position - match.start() > 1:
            continue
        if token == ord('"'):
            _not_json()
        depth += 1 if token in b"{[" else -1
        if depth < 0:
            return [*pieces, (start, match.start())], position
    _not_json()


def _not_json() -> NoReturn:
    raise CheckpointError(f"{FILE} is not valid JSON", hint=DAMAGED_HINT)


def _is_score(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # Nothing that is not finite is within.
    return abs(value) <= _MAX_SCORE


def _list_of(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else []


def _pair(value: object) -> tuple[str, str]:
    # Until transformers 4.44 a merge was one string.
    items = _list_of(value.split(" ") if isinstance(value, str) else value)
    if len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], str):
        return items[0], items[1]
    raise CheckpointError(
        f"{FILE}: {quoted(str(value)[:80])} is not a merge of two tokens", hint=DAMAGED_HINT
    )
