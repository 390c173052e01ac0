"""tokenizer.model: a SentencePiece model, read without protobuf and without trust.

Facts from sentencepiece_model.proto: a ModelProto holds pieces (field 1: piece 1, score 2, type 3),
trainer_spec (field 2: model_type 3) and normalizer_spec (field 3: precompiled_charsmap 2,
add_dummy_prefix 3, remove_extra_whitespaces 4). Protobuf's wire format: a tag is field << 3 | kind;
kind 0 is a varint, 1 eight bytes, 2 a length and that many bytes, 5 four bytes.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from edgevlm.errors import CheckpointError
from edgevlm.files import human_bytes
from edgevlm_convert.config import MAX_VOCABULARY
from edgevlm_convert.json_file import DAMAGED_HINT, check_regular_file, quoted

FILE = "tokenizer.model"
_MAX_BYTES = 64_000_000
_MAX_PIECE_BYTES = 65_536
UNIGRAM, BPE = 1, 2
_TYPES = range(1, 7)
_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a tokenizer.model says.

    Attributes:
        texts: of all pieces, by id.
        scores: 32-bit floats, by id.
        types: by id; the numbers are those of `llama_token_type`.
        model_type: 1 for unigram, 2 for BPE.
        add_dummy_prefix: a space is put in front of the text.
        remove_extra_whitespaces: runs of spaces become one.
        charsmap: table of characters to replace (NFKC or another); empty for none.
    """

    texts: list[str]
    scores: array[float]
    types: list[int]
    model_type: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model.

    Raises:
        CheckpointError: unreadable, too large, not such a file, or one with pieces that are empty,
            there twice, not UTF-8, of an unknown type, or without a finite score.
    """
    size = check_regular_file(path)
    if size > _MAX_BYTES:
        raise CheckpointError(
            f"`{path}` has {human_bytes(size)}, more than the {human_bytes(_MAX_BYTES)} allowed",
            hint=DAMAGED_HINT,
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    texts: list[str] = []
    scores, types = array("f"), list[int]()
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(raw):
        if field == 1:
            _read_piece(value, texts, scores, types)
        elif field == 2:
            trainer |= dict(_fields(_bytes_of(value)))
        elif field == 3:
            normalizer |= dict(_fields(_bytes_of(value)))
    if not texts:
        _damaged("holds no pieces")
    if len(set(texts)) != len(texts):
        _damaged("holds a piece twice")
    return SentencePieceModel(
        texts=texts,
        scores=scores,
        types=types,
        model_type=_integer(trainer, 3, default=UNIGRAM),
        add_dummy_prefix=bool(_integer(normalizer, 3, default=1)),
        remove_extra_whitespaces=bool(_integer(normalizer, 4, default=1)),
        charsmap=_bytes_of(normalizer.get(2, b"")),
    )


def _read_piece(
    value: int | bytes, texts: list[str], scores: array[float], types: list[int]
) -> None:
    if len(texts) >= MAX_VOCABULARY:
        _damaged(f"holds more than {MAX_VOCABULARY} pieces")
    text, score, kind = b"", 0.0, 1
    for field, inner in _fields(_bytes_of(value)):
        if field == 1:
            text = _bytes_of(inner)
        elif field == 2:
            raw = _bytes_of(inner)
            score = _FLOAT.unpack(raw)[0] if len(raw) == 4 else math.nan
        elif field == 3:
            kind = inner if isinstance(inner, int) else 0
    if not 0 < len(text) <= _MAX_PIECE_BYTES or kind not in _TYPES:
        _damaged(f"has no text, or an unknown type, in piece {len(texts)}")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        _damaged(f"is not UTF-8 text in piece {len(texts)}")
    if not math.isfinite(score):
        _damaged(f"gives piece {quoted(decoded)} the score {score}")
    texts.append(decoded)
    scores.append(score)
    types.append(kind)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field numbers and values of one message; a varint is an int, all else is bytes."""
    position, end = 0, len(raw)
    while position < end:
        tag, position = _varint(raw, position)
        kind = tag & 7
        if kind == 0:
            number, position = _varint(raw, position)
            yield tag >> 3, number
            continue
        if kind == 2:
            length, position = _varint(raw, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            _damaged(f"has a field of the unknown kind {kind}")
        if length > end - position:
            _damaged("ends too early, or is not a SentencePiece model")
        yield tag >> 3, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for number, byte in enumerate(raw[position : position + 10]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, position + number + 1
    _damaged("ends too early, or is not a SentencePiece model")


def _integer(fields: dict[int, int | bytes], field: int, *, default: int) -> int:
    value = fields.get(field, default)
    if not isinstance(value, int):
        _damaged(f"has no number in field {field}")
    return value


def _bytes_of(value: int | bytes) -> bytes:
    if isinstance(value, int):
        _damaged("has a number where a message belongs")
    return value


def _damaged(what: str) -> NoReturn:
    raise CheckpointError(f"{FILE} {what}", hint=DAMAGED_HINT)
