"""Gemma 4's vocabulary: SentencePiece's pieces joined by listed merges, `gemma4` in GGUF.

Keys, order and types are those of llama.cpp's converter (conversion/gemma.py,
`Gemma4Model.set_vocab`); what it computes with them from src/llama-vocab.cpp
(`LLAMA_VOCAB_PRE_TYPE_GEMMA4`): spaces become `▁`, bytes without a piece `<0xXX>`.
"""

from __future__ import annotations

from array import array as compact
from collections.abc import Mapping, Sequence
from typing import cast

from edgevlm.errors import ConversionError
from edgevlm_convert.metadata import Value, array, boolean, string
from edgevlm_convert.vocabulary.added import AddedToken
from edgevlm_convert.vocabulary.rows import USER_DEFINED
from edgevlm_convert.vocabulary.sentencepiece import read_pieces, sentencepiece_keys
from edgevlm_convert.vocabulary.tokenizer_json import TokenizerJson

MODEL = "gemma4"
MODEL_TYPES = ("gemma4_text", "gemma4_unified_text")
# Behind the chat template in the file.
LATE_KEYS: Mapping[str, Value] = {
    "tokenizer.ggml.add_space_prefix": boolean(False),
    "tokenizer.ggml.add_bos_token": boolean(True),
}
_SCORE = -1000.0
# Control tokens that are shown in answers all the same, so that a program can read them.
_VISIBLE = frozenset(
    {
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    }
)


def gemma4_keys(
    tokenizer: TokenizerJson | None,
    added: Mapping[int, AddedToken],
    *,
    n_rows: int,
    runtime_tokens: Sequence[str],
) -> dict[str, Value]:
    """Return the keys of the vocabulary and its merges.

    Raises:
        CheckpointError: the vocabulary is damaged.
        ConversionError: there is no tokenizer.json, or an option that llama.cpp does not reproduce.
    """
    if tokenizer is None:
        raise ConversionError(
            "Gemma 4's merges stand in tokenizer.json, and there is none",
            hint="save the tokenizer beside the weights (`save_pretrained` of transformers)",
        )
    pieces = read_pieces(tokenizer, None, n_rows=n_rows)
    keys = sentencepiece_keys(pieces, added, n_rows=n_rows, runtime_tokens=runtime_tokens)
    tokens = cast(Sequence[str], keys["tokenizer.ggml.tokens"].value)
    types = cast(Sequence[int], keys["tokenizer.ggml.token_type"].value)
    return {
        "tokenizer.ggml.model": string(MODEL),
        "tokenizer.ggml.tokens": keys["tokenizer.ggml.tokens"],
        "tokenizer.ggml.scores": Value("ARRAY:FLOAT32", compact("f", [_SCORE]) * n_rows),
        "tokenizer.ggml.token_type": array(
            "INT32",
            [
                USER_DEFINED if token in _VISIBLE else kind
                for token, kind in zip(tokens, types, strict=True)
            ],
        ),
        "tokenizer.ggml.merges": array(
            "STRING", [f"{left} {right}" for left, right in tokenizer.merges()]
        ),
    }
