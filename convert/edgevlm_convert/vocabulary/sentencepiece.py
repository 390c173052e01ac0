"""SentencePiece BPE: Llama's kind of vocabulary, `tokenizer.ggml.model` "llama".

Pieces come from tokenizer.model, else from a tokenizer.json with byte fallback. Keys, order, types
and scores are those of llama.cpp's converter (conversion/base.py `_create_vocab_sentencepiece`),
with two differences where its files are wrong: tokens that only tokenizer.json adds are there
(transformers 5 no longer repeats them), and without a tokenizer.model the scores are ranks of
merges, where that converter gives every token the same one, so that merges lose their order.
"""

from __future__ import annotations

import re
from array import array as compact
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.json_file import DAMAGED_HINT, quoted
from edgevlm_convert.metadata import Value, array, string
from edgevlm_convert.vocabulary.added import AddedToken, too_large
from edgevlm_convert.vocabulary.rows import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    check_runtime_tokens,
    fill_rows,
)
from edgevlm_convert.vocabulary.sentencepiece_model import SentencePieceModel
from edgevlm_convert.vocabulary.structure import describe, shown
from edgevlm_convert.vocabulary.tokenizer_json import TokenizerJson

# Scores that llama.cpp's converter gives to rows without a token, and to added tokens.
_PADDING_SCORE, _ADDED_SCORE = -10000.0, -1000.0
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACE = "Replace string=  content=▁"
_PREPEND = "Prepend prepend=▁"
_SPLIT = "Split string=  behavior=MergedWithPrevious invert=False"
_METASPACE = "Metaspace replacement=▁ prepend_scheme={} split=False"
# Normalizer and pre-tokenizer -> whether a space is put in front of a text.
_SPACES: Mapping[tuple[tuple[str, ...], tuple[str, ...]], bool] = {
    ((_PREPEND, _REPLACE), ()): True,
    ((_REPLACE,), ()): False,
    ((_REPLACE,), (_SPLIT,)): False,
    ((), (_METASPACE.format("always"),)): True,
    ((), (_METASPACE.format("first"),)): True,
    ((), (_METASPACE.format("never"),)): False,
}


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The pieces of a vocabulary, before tokens are added.

    Attributes:
        texts: by id; None where an id has none.
        scores: by id.
        types: by id.
    """

    texts: Sequence[str | None]
    scores: compact[float]
    types: Sequence[int]


def adds_space_prefix(tokenizer: TokenizerJson | None, model: SentencePieceModel | None) -> bool:
    """Return whether a space is put in front of a text.

    Raises:
        ConversionError: a normalizer or pre-tokenizer that llama.cpp does not reproduce.
    """
    if tokenizer is None:
        if model is not None and (model.charsmap or model.remove_extra_whitespaces):
            raise ConversionError(
                "tokenizer.model normalizes the text, which llama.cpp does not",
                hint="models whose SentencePiece normalizer is `identity` can be converted",
            )
        return model is None or model.add_dummy_prefix
    normalizer = describe(tokenizer.document.raw("normalizer"))
    pre_tokenizer = describe(tokenizer.document.raw("pre_tokenizer"))
    prefix = _SPACES.get((normalizer, pre_tokenizer))
    if prefix is None:
        raise ConversionError(
            f"unknown SentencePiece tokenizer: normalizer {shown(normalizer)};"
            f" pre-tokenizer {shown(pre_tokenizer)}",
            hint="spaces that become ▁, with or without one in front, can be converted",
        )
    return prefix


def read_pieces(
    tokenizer: TokenizerJson | None, model: SentencePieceModel | None, *, n_rows: int
) -> Pieces:
    """Return the pieces of a tokenizer.model, else of a tokenizer.json.

    Raises:
        CheckpointError: the files are damaged, or there is none.
        ConversionError: an option that llama.cpp does not reproduce.
    """
    if model is not None:
        return pieces_of_model(model, alone=tokenizer is None)
    if tokenizer is not None:
        return _pieces_of_json(tokenizer, n_rows=n_rows)
    raise CheckpointError("there is no tokenizer", hint=DAMAGED_HINT)


def pieces_of_model(model: SentencePieceModel, *, alone: bool) -> Pieces:
    """Return the pieces of a tokenizer.model; `alone`: there is no tokenizer.json beside it."""
    # With a tokenizer.json it is that file's added tokens which are found before anything else.
    types = [NORMAL if kind == USER_DEFINED and not alone else kind for kind in model.types]
    return Pieces(texts=model.texts, scores=model.scores, types=types)


def _pieces_of_json(tokenizer: TokenizerJson, *, n_rows: int) -> Pieces:
    """Return the pieces of a tokenizer.json with byte fallback; their scores are ranks of merges.

    llama.cpp merges the pair with the best score first, `tokenizers` the pair that is listed
    first: a piece's score is the negative number of pieces that a merge gives earlier.

    Raises:
        CheckpointError: vocabulary or merges are damaged.
        ConversionError: an option that llama.cpp does not reproduce.
    """
    model = tokenizer.model
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.raw(key):
            raise ConversionError(
                f"tokenizer.json: `model.{key}` is {quoted(str(model.raw(key)))}, "
                "which llama.cpp's SentencePiece BPE does not know",
                hint="only plain BPE vocabularies with byte fallback can be converted",
            )
    ids = tokenizer.vocabulary()
    unknown = model.text("unk_token", default="")
    texts: list[str | None] = [None] * n_rows
    types = [UNUSED] * n_rows
    scores = compact("f", [_PADDING_SCORE]) * n_rows
    for text, number in ids.items():
        if number >= n_rows:
            raise too_large(text, number, n_rows)
        byte = _BYTE.fullmatch(text) is not None
        texts[number] = text
        types[number] = UNKNOWN if text == unknown else BYTE if byte else NORMAL
        scores[number] = 0.0 if types[number] != NORMAL else _ADDED_SCORE - len(ids)
    n_merged = 0
    for left, right in tokenizer.merges():
        number = ids.get(left + right)
        if number is None or left not in ids or right not in ids:
            raise CheckpointError(
                f"tokenizer.json: merge {quoted(f'{left} {right}')} is of no known tokens",
                hint=DAMAGED_HINT,
            )
        if scores[number] < -n_merged:
            scores[number] = -float(n_merged)
            n_merged += 1
    return Pieces(texts=texts, scores=scores, types=types)


def sentencepiece_keys(
    pieces: Pieces,
    added: Mapping[int, AddedToken],
    *,
    n_rows: int,
    runtime_tokens: Sequence[str],
    model: str = "llama",
) -> dict[str, Value]:
    """Return the keys of a vocabulary: pieces, then what was added, then padding.

    Raises:
        ConversionError: a piece without a row, or another model's tokenizer.
    """
    if len(pieces.texts) > n_rows:
        raise too_large(str(pieces.texts[n_rows]), n_rows, n_rows)
    n_padding = n_rows - len(pieces.texts)
    texts = [*pieces.texts, *[None] * n_padding]
    types = [*pieces.types, *[UNUSED] * n_padding]
    scores = pieces.scores + compact("f", [_PADDING_SCORE]) * n_padding
    contents = {token.content for token in added.values()}
    at = {text: row for row, text in enumerate(texts) if text in contents}
    for number, token in added.items():
        row = at.get(token.content, number)
        texts[row], scores[row] = token.text, _ADDED_SCORE
        types[row] = CONTROL if token.is_control else USER_DEFINED
    filled = fill_rows(texts, types)
    known = set(filled)
    check_runtime_tokens(
        runtime_tokens,
        lambda text: text in known or text.replace(" ", "▁") in known or _is_byte(text, known),
    )
    if model == "llama":
        _check_bytes(known)
    return {
        "tokenizer.ggml.model": string(model),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": array("STRING", filled),
        "tokenizer.ggml.scores": Value("ARRAY:FLOAT32", scores),
        "tokenizer.ggml.token_type": array("INT32", types),
    }


def _check_bytes(known: Set[str]) -> None:
    """Check that every byte has a piece: without one llama.cpp ends the process at a text.

    Facts from llama.cpp (src/llama-vocab.cpp, `byte_to_token`).
    """
    for byte in range(256):
        if f"<0x{byte:02X}>" not in known:
            raise ConversionError(
                f"the vocabulary has no piece `<0x{byte:02X}>`, and llama.cpp needs one for every"
                " byte",
                hint="only SentencePiece BPE with byte fallback can be converted",
            )


def _is_byte(text: str, tokens: Set[str]) -> bool:
    raw = text.encode()
    return len(raw) == 1 and f"<0x{raw[0]:02X}>" in tokens
