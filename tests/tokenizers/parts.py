"""What the tokenizer makers beside this file share: pieces, merges, protobuf, files.

Every maker is a function `write_tokenizer_NAME(folder, *, n_tokens=...)` that writes the tokenizer
files of one kind of checkpoint as they are published: tokenizer.json, tokenizer_config.json,
chat_template.jinja, and tokenizer.model where the kind ships one. `n_tokens` counts every token
with an id; a model's embedding may have more rows. Ids of special tokens: `token_ids(folder)`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.synthetic_tokenizer import write_json

Config = dict[str, Any]
# Types of a piece in sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_ENGLISH = (
    "▁ t", "h e", "▁t he", "i n", "▁ a", "o n", "r e", "▁ i", "▁i s", "i s", "c o", "l o",
    "co lo", "colo r", "▁ w", "h a", "ha t", "▁w hat", "i r", "c ir", "cir c", "circ le", "l e",
)  # fmt: skip
LETTERS = "▁thenaircolws"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of a SentencePiece model."""

    text: str
    score: float = 0.0
    type: int = NORMAL


def byte_pieces() -> list[Piece]:
    """Return the 256 pieces that stand for single bytes."""
    return [Piece(text=f"<0x{byte:02X}>", type=BYTE) for byte in range(256)]


def bpe_pieces(n_pieces: int) -> list[Piece]:
    """Return pieces as BPE training leaves them: merged ones, best first, then single letters."""
    letters = list(LETTERS)
    merged: dict[str, None] = {}
    for line in _ENGLISH:
        merged["".join(line.split(" "))] = None
    bases = [*letters, *merged]
    for base in bases:
        for letter in letters[1:]:
            if len(merged) >= n_pieces - len(letters):
                break
            if base + letter not in merged:
                merged[base + letter] = None
                bases.append(base + letter)
        else:
            continue
        break
    kept = [*merged][: max(0, n_pieces - len(letters))] + letters
    return [Piece(text=text, score=-float(rank)) for rank, text in enumerate(kept[:n_pieces])]


def merges_of(pieces: Sequence[Piece]) -> list[list[str]]:
    """Return every way to make a normal piece of two others, as tokenizer.json lists them.

    The order is that of transformers' SentencePiece extractor: by score, then by the parts' length.
    User-defined pieces take part: Gemma's runs of spaces are merged like any other piece.
    """
    parts = [piece for piece in pieces if piece.type in (NORMAL, USER_DEFINED)]
    scores = {piece.text: piece.score for piece in parts}
    ranked = sorted(
        (
            (-score, -index, text[:index], text[index:])
            for text, score in scores.items()
            for index in range(1, len(text))
            if text[:index] in scores and text[index:] in scores
        ),
        key=lambda entry: entry[:2],
    )
    return [[left, right] for _, _, left, right in ranked]


def sentencepiece_model(
    pieces: Iterable[Piece],
    *,
    unk_id: int,
    add_dummy_prefix: bool,
    model_type: int = 2,
    charsmap: bytes = b"",
    remove_extra_whitespaces: bool = False,
) -> bytes:
    """Return a serialized ModelProto (sentencepiece_model.proto); type 1 is unigram, 2 BPE."""
    trainer = (
        _integer(3, model_type)
        + _integer(35, 1)  # byte_fallback
        + _integer(40, unk_id)
    )
    normalizer = (
        _text(1, "identity")
        + (_bytes(2, charsmap) if charsmap else b"")
        + _integer(3, int(add_dummy_prefix))
        + _integer(4, int(remove_extra_whitespaces))
        + _integer(5, 1)  # escape_whitespaces
    )
    body = b"".join(
        _bytes(
            1,
            _text(1, piece.text)
            + b"\x15"  # field 2, four bytes
            + struct.pack("<f", piece.score)
            + _integer(3, piece.type),
        )
        for piece in pieces
    )
    return body + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def added_token(number: int, content: str, *, special: bool = True, **flags: bool) -> Config:
    """Return one entry of `added_tokens`."""
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
        **flags,
    }


def bos_template(bos: str, bos_id: int) -> Config:
    """Return the post-processor that puts `bos` in front of every text."""
    special, first = (
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    second = [
        {"SpecialToken": {"id": bos, "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, *second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def write_files(
    folder: Path,
    *,
    tokenizer: Config,
    settings: Mapping[str, Any],
    template: str,
    model: bytes | None = None,
    declare: bool = True,
) -> None:
    """Write the files; `declare` lists the added tokens in tokenizer_config.json too.

    transformers 4 did that, transformers 5 leaves them to tokenizer.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer)
    declared = {
        str(token["id"]): {key: token[key] for key in token if key != "id"}
        for token in cast(list[Config], tokenizer["added_tokens"])
    }
    settings = {**settings, "added_tokens_decoder": declared} if declare else dict(settings)
    write_json(folder / "tokenizer_config.json", dict(sorted(settings.items())))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)


def token_ids(folder: Path) -> dict[str, int]:
    """Return the ids of the added tokens of a written tokenizer, by their text."""
    tokenizer: Config = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
