"""The vocabulary of a GGUF file, loaded without its weights: text in, token ids out."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelLoadError
from edgevlm.native.handle import owned
from edgevlm.native.library import because, complaints, load_library


def tokenize(vocab: Any, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
    """Return the token ids of `text`.

    Args:
        vocab: of a loaded model.
        text: any text; lone surrogates are replaced.
        parse_special: whether control tokens written out in `text` become those tokens.
        add_special: whether BOS and EOS are added where the vocabulary says so.

    Raises:
        ModelLoadError: llama.cpp gives no tokens.
    """
    c: Any = load_library().llama
    data = text.encode("utf-8", "replace")
    n_room = len(data) + 8
    for _ in range(2):
        ids = (ctypes.c_int32 * n_room)()
        n_tokens = c.llama_tokenize(vocab, data, len(data), ids, n_room, add_special, parse_special)
        if n_tokens >= 0:
            return ids[:n_tokens]
        n_room = -n_tokens
    raise ModelLoadError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")


class Vocabulary:
    """The vocabulary of one file. Made by `open_vocabulary`."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._vocab: Any = load_library().llama.llama_model_get_vocab(handle)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the token ids of `text`, control tokens in it being what they are."""
        return tokenize(self._vocab, text, parse_special=True, add_special=add_special)


@contextmanager
def open_vocabulary(path: Path) -> Generator[Vocabulary]:
    """Load the vocabulary of the text model at `path`; no tensor is read.

    Raises:
        ModelLoadError: llama.cpp refuses the file; the message carries its reason.
    """
    c: Any = load_library().llama
    params = c.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    with complaints() as lines:
        handle = c.llama_model_load_from_file(str(path).encode(), params)

    def error() -> ModelLoadError:
        return ModelLoadError(
            f"llama.cpp cannot load the vocabulary of `{path}`{because(lines)}",
            hint="its tokenizer may be newer than llama-cpp-python "
            f"{load_library().version}; `edgevlm convert` writes it anew",
        )

    with owned(handle, c.llama_model_free, error=error) as model:
        yield Vocabulary(model)
