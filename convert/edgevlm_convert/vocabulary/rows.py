"""Rows of the embedding -> texts and types, as GGUF lists them.

Every row has a text, and llama.cpp aborts the process when two have the same one: a row without a
token becomes `[PAD{row}]` (the name that llama.cpp's converter gives it), and so does the second
of two rows with one text, which no text ever reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgevlm.errors import ConversionError
from edgevlm_convert.json_file import quoted

# Token types of GGUF (llama.h, `llama_token_type`).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Embeddings are padded for speed (Qwen3-VL: 267 rows); more than this is another model's tokenizer.
_MAX_PADDING = 1024


def fill_rows(tokens: list[str | None], types: list[int]) -> list[str]:
    """Return a text for every row, and set the type of those that had none.

    Raises:
        ConversionError: so many rows without a token that the tokenizer must be another model's.
    """
    n_rows, n_padding = len(tokens), tokens.count(None)
    if n_padding > max(_MAX_PADDING, n_rows // 8):
        raise ConversionError(
            f"the vocabulary has {n_rows - n_padding} tokens, the embedding {n_rows} rows: "
            f"{n_padding} rows without a token",
            hint="the tokenizer is of another model; download the checkpoint again",
        )
    taken: set[str] = set()
    empty: list[int] = []
    for row, token in enumerate(tokens):
        if token is None or token in taken:
            empty.append(row)
        else:
            taken.add(token)
    for row in empty:
        name = f"[PAD{row}]"
        while name in taken:
            name = f"[{name}]"
        taken.add(name)
        tokens[row], types[row] = name, UNUSED
    return [token for token in tokens if token is not None]


def check_runtime_tokens(runtime_tokens: Sequence[str], is_known: Callable[[str], bool]) -> None:
    """Check that the tokens are there which llama.cpp looks up for a projector.

    Raises:
        ConversionError: one is not; libmtmd would abort the process at the first image.
    """
    for token in runtime_tokens:
        if not is_known(token):
            raise ConversionError(
                f"the tokenizer has no token {quoted(token)}, which llama.cpp needs for images",
                hint="the tokenizer is of a text-only model; use the one of the VLM",
            )
