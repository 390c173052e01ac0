"""A text model and its vocabulary, as libllama loads them.

Structures and functions: llama.h of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelLoadError
from edgevlm.native.devices import CARD_HINT, lacks_card_memory, offload_handles
from edgevlm.native.handle import owned
from edgevlm.native.library import because, complaints, load_library
from edgevlm.native.vocabulary import tokenize

_ROPE_WITH_SECTIONS = (8, 40)  # LLAMA_ROPE_TYPE_MROPE, LLAMA_ROPE_TYPE_IMROPE
_N_POSITIONS_MROPE = 4
# Architectures whose text tokens have four positions of their own.
_FOUR_POSITIONS = ("hunyuan_vl",)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a text model is loaded.

    Attributes:
        device: "auto", "cpu", "cuda", "metal" or "vulkan".
        n_gpu_layers: layers on the GPU, the output counted as one; None for all.
    """

    device: str = "auto"
    n_gpu_layers: int | None = None


class TextModel:
    """A loaded text model with its vocabulary. Made by `open_text_model`."""

    def __init__(self, handle: int) -> None:
        self._c: Any = load_library().llama
        self.handle = handle
        self.vocab: Any = self._c.llama_model_get_vocab(handle)
        self.n_vocab: int = self._c.llama_vocab_n_tokens(self.vocab)
        self.n_embd_inp: int = self._c.llama_model_n_embd_inp(handle)
        self.n_ctx_train: int = self._c.llama_model_n_ctx_train(handle)
        # Image tokens of M-RoPE models carry (time, row, column, 0) instead of one position.
        self.n_positions: int = (
            _N_POSITIONS_MROPE
            if self._c.llama_model_rope_type(handle) in _ROPE_WITH_SECTIONS
            else 1
        )
        # Its text tokens were trained with all four of them, see rope_positions.py.
        self.has_four_positions: bool = self._architecture() in _FOUR_POSITIONS
        # How far back some layers look, in tokens; 0: all of them to the beginning.
        self.n_window: int = self._c.llama_model_n_swa(handle)
        self.adds_bos: bool = self._c.llama_vocab_get_add_bos(self.vocab)
        self.bos: int | None = self._token_or_none(self._c.llama_vocab_bos(self.vocab))
        self._more_ends: frozenset[int] = frozenset()
        self._tags: frozenset[int] = frozenset()

    def _architecture(self) -> str:
        buffer = ctypes.create_string_buffer(64)
        key = b"general.architecture"
        self._c.llama_model_meta_val_str(self.handle, key, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @staticmethod
    def _token_or_none(token: int) -> int | None:
        return token if token >= 0 else None

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Return the token ids of `text`, nothing added before or after.

        Args:
            text: any text; lone surrogates are replaced.
            parse_special: whether control tokens written out in `text` become those tokens.
        """
        return tokenize(self.vocab, text, parse_special=parse_special)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for: a piece of UTF-8, perhaps not a whole one.

        Args:
            token: token id.
            special: whether control tokens are written out; else they are empty.
        """
        n_room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(n_room)
            n_bytes = self._c.llama_token_to_piece(self.vocab, token, buffer, n_room, 0, special)
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            n_room = -n_bytes
        raise ModelLoadError(f"llama.cpp cannot spell token {token}")

    def is_end(self, token: int) -> bool:
        """Return whether `token` ends an answer (EOS, EOT and their kind)."""
        return token in self._more_ends or self.is_native_end(token)

    def is_native_end(self, token: int) -> bool:
        """Return whether libllama itself knows that `token` ends an answer."""
        return bool(self._c.llama_vocab_is_eog(self.vocab, token))

    def add_ends(self, tokens: Sequence[int]) -> None:
        """Let `tokens` end an answer too; libllama reads one EOS of a file, some models have more.

        Raises:
            ModelLoadError: there is no such token.
        """
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise ModelLoadError(
                    f"the file names the end token {token}, its vocabulary has {self.n_vocab}",
                    hint="convert the model again",
                )
        self._more_ends |= frozenset(tokens)

    def add_tags(self, texts: Sequence[str]) -> None:
        """Let `is_tag` find each of `texts` that is one token of the vocabulary."""
        ids = [self.tokenize(text, parse_special=True) for text in texts]
        self._tags |= frozenset(found[0] for found in ids if len(found) == 1)

    def is_tag(self, token: int) -> bool:
        """Return whether `token` is one of those named to `add_tags`."""
        return token in self._tags

    def is_control(self, token: int) -> bool:
        """Return whether `token` is a control token."""
        return bool(self._c.llama_vocab_is_control(self.vocab, token))


@contextmanager
def open_text_model(path: Path, options: ModelOptions) -> Generator[TextModel]:
    """Load the text model at `path`, whose header the caller has checked (`read_gguf`).

    Raises:
        ModelLoadError: llama.cpp refuses the file; the message carries its reason.
    """
    c: Any = load_library().llama
    params = c.llama_model_default_params()
    handles = offload_handles(options.device)
    if handles is not None:
        # NULL-terminated; an empty list keeps every layer on the CPU.
        array = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
        params.devices = ctypes.cast(array, ctypes.c_void_p)
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    with complaints() as lines:
        handle = c.llama_model_load_from_file(str(path).encode(), params)

    def error() -> ModelLoadError:
        return ModelLoadError(
            f"llama.cpp cannot load `{path}`{because(lines)}",
            hint=CARD_HINT
            if lacks_card_memory(lines)
            else "the file may be damaged, or its architecture newer than llama-cpp-python"
            f" {load_library().version}",
        )

    with owned(handle, c.llama_model_free, error=error) as model:
        yield TextModel(model)
