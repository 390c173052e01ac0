"""SentencePiece unigram: `tokenizer.ggml.model` "t5", whatever the architecture is.

Pieces come from tokenizer.model, else from a tokenizer.json. Keys and order are those of
llama.cpp's converter (conversion/t5.py); for decoders that converter writes "llama" instead, whose
greedy merges are not what a unigram model does. llama.cpp has no byte fallback here: what no piece
covers becomes the unknown token. So a byte of ASCII that is in no piece (a line end, often) has its
character as its text, and is found; characters of several bytes cannot be mended.
"""

from __future__ import annotations

import re
from array import array as compact
from collections.abc import Mapping, Sequence, Set

import numpy as np

from edgevlm.errors import CheckpointError
from edgevlm_convert.json_file import DAMAGED_HINT
from edgevlm_convert.metadata import Value, boolean, u32
from edgevlm_convert.vocabulary.added import AddedToken
from edgevlm_convert.vocabulary.rows import BYTE, NORMAL, UNKNOWN, UNUSED
from edgevlm_convert.vocabulary.sentencepiece import Pieces, pieces_of_model, sentencepiece_keys
from edgevlm_convert.vocabulary.sentencepiece_model import FILE, SentencePieceModel
from edgevlm_convert.vocabulary.tokenizer_json import TokenizerJson
from edgevlm_convert.vocabulary.unigram_text import (
    check_charsmap,
    text_steps_of_json,
    text_steps_of_model,
)

UNKNOWN_ID = "tokenizer.ggml.unknown_token_id"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def unigram_keys(
    tokenizer: TokenizerJson | None,
    model: SentencePieceModel | None,
    added: Mapping[int, AddedToken],
    *,
    n_rows: int,
    runtime_tokens: Sequence[str],
) -> dict[str, Value]:
    """Return the keys of a unigram vocabulary.

    Raises:
        CheckpointError: a table of characters or a piece is damaged.
        ConversionError: a step that llama.cpp does not reproduce, or another model's tokenizer.
    """
    # The tokenizer.json is what transformers reads where both files are there.
    if tokenizer is not None:
        pieces, text = _pieces_of_json(tokenizer), text_steps_of_json(tokenizer.values)
    elif model is not None:
        pieces, text = pieces_of_model(model, alone=True), text_steps_of_model(model)
    else:
        raise CheckpointError("there is no tokenizer", hint=DAMAGED_HINT)
    if UNKNOWN not in pieces.types:
        raise CheckpointError(f"{FILE} has no piece for what is unknown", hint=DAMAGED_HINT)
    unknown = pieces.types.index(UNKNOWN)
    contents = {token.content for token in added.values()}
    letters: set[str] = set()
    for piece, kind in zip(pieces.texts, pieces.types, strict=True):
        if piece and kind in (NORMAL, UNUSED) and piece not in contents:
            letters |= set(piece)
    keys = sentencepiece_keys(
        _with_plain_bytes(pieces, plain_bytes(letters | contents)),
        added,
        n_rows=n_rows,
        runtime_tokens=runtime_tokens,
        model="t5",
    )
    # Without the key llama.cpp takes id 2, whatever that is.
    keys[UNKNOWN_ID] = u32(unknown)
    keys["tokenizer.ggml.add_space_prefix"] = boolean(text.prefix)
    keys["tokenizer.ggml.remove_extra_whitespaces"] = boolean(text.remove_extra)
    if text.charsmap:
        check_charsmap(text.charsmap)
        table = np.frombuffer(text.charsmap, dtype=np.uint8)
        keys["tokenizer.ggml.precompiled_charsmap"] = Value("ARRAY:UINT8", table.tolist())
    return keys


def is_byte_piece(text: str) -> bool:
    """Return whether a piece stands for a byte."""
    return _BYTE.fullmatch(text) is not None


def plain_bytes(letters: Set[str]) -> dict[str, str]:
    """Return the characters that stand for byte pieces, by these.

    Args:
        letters: that other pieces hold, tokens that are found first left out; and those tokens.
    """
    return {
        f"<0x{byte:02X}>": chr(byte)
        for byte in range(1, 128)
        if chr(byte) != " " and not {chr(byte), f"<0x{byte:02X}>"} & letters
    }


def _with_plain_bytes(pieces: Pieces, plain: Mapping[str, str]) -> Pieces:
    """Return pieces with bytes as characters; their score is no matter: there is no other cut."""
    texts, types = list(pieces.texts), list(pieces.types)
    scores = compact("f", pieces.scores)
    lowest = min(scores, default=0.0)
    for row, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True)):
        if kind == BYTE and text is not None and text in plain:
            texts[row], types[row], scores[row] = plain[text], NORMAL, lowest
    return Pieces(texts=texts, scores=scores, types=types)


def _pieces_of_json(tokenizer: TokenizerJson) -> Pieces:
    model = tokenizer.model
    unknown = model.integer("unk_id", low=0, high=1 << 31)
    fallback = model.boolean("byte_fallback", default=False)
    texts: list[str] = []
    types: list[int] = []
    scores = compact("f")
    for number, (text, score) in enumerate(tokenizer.pieces()):
        byte = fallback and is_byte_piece(text)
        texts.append(text)
        scores.append(score)
        types.append(UNKNOWN if number == unknown else BYTE if byte else NORMAL)
    if unknown >= len(texts):
        model.fail("unk_id", f"the id of one of {len(texts)} pieces")
    return Pieces(texts=texts, scores=scores, types=types)
