"""Byte-level BPE: GPT-2's kind of vocabulary, `tokenizer.ggml.model` "gpt2".

Keys, order and types are those of llama.cpp's converter (conversion/base.py `_set_vocab_gpt2`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.json_file import DAMAGED_HINT, quoted
from edgevlm_convert.metadata import Value, array, string
from edgevlm_convert.vocabulary.added import AddedToken, too_large
from edgevlm_convert.vocabulary.byte_letters import BYTE_LETTERS
from edgevlm_convert.vocabulary.pre_tokenizer_table import PreTokenizer
from edgevlm_convert.vocabulary.rows import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    check_runtime_tokens,
    fill_rows,
)
from edgevlm_convert.vocabulary.tokenizer_json import TokenizerJson


def byte_letters() -> list[str]:
    """Return the letter of every byte."""
    return list(BYTE_LETTERS)


def byte_level_keys(
    tokenizer: TokenizerJson,
    added: Mapping[int, AddedToken],
    *,
    n_rows: int,
    pre: PreTokenizer,
    runtime_tokens: Sequence[str],
) -> dict[str, Value]:
    """Return the keys of the vocabulary and its merges.

    Raises:
        CheckpointError: the vocabulary is damaged.
        ConversionError: an option that llama.cpp does not reproduce, or another model's tokenizer.
    """
    ids = tokenizer.vocabulary()
    letters = byte_letters()
    _check_options(tokenizer, complete=all(letter in ids for letter in letters))
    tokens: list[str | None] = [None] * n_rows
    types = [UNUSED] * n_rows
    for token, number in ids.items():
        if number >= n_rows:
            raise too_large(token, number, n_rows)
        tokens[number], types[number] = token, NORMAL
    known = {token.content for token in added.values()}
    for number, token in added.items():
        at = ids.get(token.content, number)
        if at == number and tokens[number] not in (None, token.content):
            raise CheckpointError(
                f"tokenizer.json: added token {quoted(token.content)} contradicts the vocabulary",
                hint=DAMAGED_HINT,
            )
        # Of a token that is defined twice the vocabulary's id counts.
        tokens[at], types[at] = token.text, CONTROL if token.is_control else USER_DEFINED
    check_runtime_tokens(
        runtime_tokens,
        lambda text: text in known or "".join(letters[byte] for byte in text.encode()) in ids,
    )
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre.name),
        "tokenizer.ggml.tokens": array("STRING", fill_rows(tokens, types)),
        "tokenizer.ggml.token_type": array("INT32", types),
        "tokenizer.ggml.merges": array("STRING", _merges(tokenizer, ids)),
    }


def _check_options(tokenizer: TokenizerJson, *, complete: bool) -> None:
    """Check the model's options; `complete`: every byte has a token, so none is ever unknown."""
    model = tokenizer.model
    refused = ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
    if not complete:
        refused += ["unk_token", "fuse_unk"]
    for key in refused:
        if model.raw(key):
            raise ConversionError(
                f"tokenizer.json: `model.{key}` is {quoted(str(model.raw(key)))}, "
                "which llama.cpp's byte-level BPE does not know",
                hint="only plain byte-level BPE vocabularies can be converted",
            )


def _merges(tokenizer: TokenizerJson, ids: Mapping[str, int]) -> list[str]:
    """Return the merges as `left right`; both parts and their union must be tokens."""
    merges: list[str] = []
    for left, right in tokenizer.merges():
        if left not in ids or right not in ids or left + right not in ids:
            raise CheckpointError(
                f"tokenizer.json: merge {quoted(f'{left} {right}')} is of no known tokens",
                hint=DAMAGED_HINT,
            )
        # A space separates the parts; inside one it is written as its byte-level letter.
        merges.append(f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}")
    return merges
