"""A text model and its context: tokens or embeddings in, float32 logits out.

Structures and functions: llama.h of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelLoadError
from edgevlm.native import ggml
from edgevlm.native.devices import lacks_card_memory, offload_handles
from edgevlm.native.handle import owned
from edgevlm.native.library import because, complaints, load_library
from edgevlm.native.vocabulary import tokenize

_ROPE_WITH_SECTIONS = (8, 40)  # LLAMA_ROPE_TYPE_MROPE, LLAMA_ROPE_TYPE_IMROPE
_N_POSITIONS_MROPE = 4
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_CARD_HINT = "the card is full: put fewer layers on it, `--gpu-layers N`, or use `--device cpu`"

KVType = Literal["F16", "F32", "Q8_0"]
FlashAttention = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a text model is loaded.

    Attributes:
        device: "auto", "cpu", "cuda", "metal" or "vulkan".
        n_gpu_layers: layers on the GPU, the output counted as one; None for all.
    """

    device: str = "auto"
    n_gpu_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """What a context holds.

    Attributes:
        n_ctx: tokens that fit, prompt and answer together.
        n_batch: most tokens per decode.
        n_outputs: most positions per decode whose logits are kept. The compute buffer grows by
            n_outputs x n_vocab x 4 bytes: 300 MB for 512 of a vocabulary of 150,000.
        n_threads: of the CPU.
        kv_type: tensor type of the KV cache; "Q8_0" takes half of F16 and needs flash attention.
        flash_attention: "auto" asks the device.
    """

    n_ctx: int
    n_batch: int = 512
    n_outputs: int = 16
    n_threads: int
    kv_type: KVType = "F16"
    flash_attention: FlashAttention = "auto"


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
        # How far back some layers look, in tokens; 0: all of them to the beginning.
        self.n_window: int = self._c.llama_model_n_swa(handle)
        self.adds_bos: bool = self._c.llama_vocab_get_add_bos(self.vocab)
        self.bos: int | None = self._token_or_none(self._c.llama_vocab_bos(self.vocab))
        self._more_ends: frozenset[int] = frozenset()
        self._tags: frozenset[int] = frozenset()

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
            hint=_CARD_HINT
            if lacks_card_memory(lines)
            else "the file may be damaged, or its architecture newer than llama-cpp-python"
            f" {load_library().version}",
        )

    with owned(handle, c.llama_model_free, error=error) as model:
        yield TextModel(model)


class TextContext:
    """The KV cache of one conversation. Made by `open_context`.

    Attributes:
        n_ctx: tokens that fit.
        n_batch: most tokens per decode.
        n_outputs: most positions whose logits one decode keeps.
        n_used: cells of the KV cache in use, one per token.
        position: of the next token. An image of an M-RoPE model moves it by less than its tokens.
    """

    def __init__(self, handle: int, model: TextModel, options: ContextOptions) -> None:
        self._c: Any = load_library().llama
        self.handle = handle
        self.model = model
        self.options = options
        # llama.cpp rounds up to 256: what the user asked for is what the user gets.
        self.n_ctx = min(options.n_ctx, self._c.llama_n_ctx(handle))
        self.n_batch = _n_batch(options)
        self.n_outputs = min(options.n_outputs, self.n_batch)
        self.n_used = 0
        self.position = 0
        self._n_kept = 0

    def clear(self) -> None:
        """Forget everything."""
        # The cells are only marked free: to zero their data takes longer than a short question.
        self._c.llama_memory_clear(self._c.llama_get_memory(self.handle), False)
        self.n_used = 0
        self.position = 0

    def keep(self, *, n_used: int, position: int) -> bool:
        """Forget everything from `position` on; `n_used` cells stand before it.

        Returns:
            False when this memory cannot forget its end alone (recurrent and hybrid models), or
            has lost what the next token looks back at: then the context is empty.
        """
        memory = self._c.llama_get_memory(self.handle)
        kept = bool(self._c.llama_memory_seq_rm(memory, 0, position, -1))
        oldest = self._c.llama_memory_seq_pos_min(memory, 0)
        seen = max(0, position + 1 - self.model.n_window) if self.model.n_window else 0
        if not kept or (position and not 0 <= oldest <= seen):
            self.clear()
            return False
        self.n_used = n_used
        self.position = position
        return True

    def decode_tokens(self, tokens: Sequence[int], *, n_logits: int = 0) -> None:
        """Append tokens; the last `n_logits` positions keep their logits.

        Args:
            tokens: token ids, as many as fit into the context.
            n_logits: at most n_outputs, and the number of tokens.
        """
        limit = min(self.n_outputs, len(tokens))
        if n_logits > limit:
            raise ValueError(f"logits of {n_logits} positions asked, {limit} can be kept")
        n_done = 0
        while n_done < len(tokens):
            n_left = len(tokens) - n_done
            n_part = min(self.n_batch, n_left)
            if n_part < n_left:
                # What keeps its logits stays together: each decode forgets those before.
                n_part = min(n_part, n_left - n_logits)
            part = np.array(tokens[n_done : n_done + n_part], dtype=np.int32)
            positions = np.arange(self.position, self.position + n_part, dtype=np.int32)
            n_done += n_part
            kept = n_logits if n_done == len(tokens) else 0
            self._decode(n_part, token=part, pos=positions, n_logits=kept)
            self.position += n_part

    def decode_embeddings(
        self,
        rows: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        n_positions_used: int,
        causal: bool = True,
    ) -> None:
        """Append image tokens as embeddings, without logits.

        Args:
            rows: [n_tokens, n_embd_inp] float32.
            positions: [n_positions, n_tokens] int32, absolute.
            n_positions_used: how far the next position moves.
            causal: false for models whose image tokens see each other both ways.

        Raises:
            ModelLoadError: an image that must be seen whole does not fit into one batch.
        """
        n_tokens = len(rows)
        step = self.n_batch
        if not causal and n_tokens > step:
            # ggml would abort the process.
            raise ModelLoadError(
                f"an image of {n_tokens} tokens must be decoded whole, a batch holds {step}",
                hint="use a smaller image",
            )
        self._c.llama_set_causal_attn(self.handle, causal)
        try:
            for start in range(0, n_tokens, step):
                part = np.ascontiguousarray(rows[start : start + step], dtype=np.float32)
                pos = np.ascontiguousarray(positions[:, start : start + step], dtype=np.int32)
                self._decode(len(part), embd=part, pos=pos, n_logits=0)
        finally:
            self._c.llama_set_causal_attn(self.handle, True)
        self.position += n_positions_used

    def _decode(
        self,
        n_tokens: int,
        *,
        pos: NDArray[np.int32],
        n_logits: int,
        token: NDArray[np.int32] | None = None,
        embd: NDArray[np.float32] | None = None,
    ) -> None:
        wants_logits = np.zeros(n_tokens, dtype=np.int8)
        wants_logits[n_tokens - n_logits :] = 1
        batch = self._c.llama_batch(n_tokens=n_tokens)  # what stays NULL means sequence 0
        int32_p = ctypes.POINTER(ctypes.c_int32)
        if token is not None:
            batch.token = token.ctypes.data_as(int32_p)
        if embd is not None:
            batch.embd = embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = pos.ctypes.data_as(int32_p)
        batch.logits = wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        with complaints() as lines:
            status = self._c.llama_decode(self.handle, batch)
        if status:
            raise ModelLoadError(
                f"llama.cpp failed to decode {n_tokens} tokens (status {status}){because(lines)}",
                hint="with little memory, try a smaller `--ctx`",
            )
        self.n_used += n_tokens
        self._n_kept = n_logits

    def synchronize(self) -> None:
        """Wait until the device has finished; for honest clocks."""
        self._c.llama_synchronize(self.handle)

    def logits(self, n_positions: int) -> NDArray[np.float32]:
        """Return [n_positions, n_vocab]: the logits that the last decode kept, in order."""
        if n_positions != self._n_kept:
            raise ValueError(f"{n_positions} rows of logits asked, {self._n_kept} were kept")
        pointer = self._c.llama_get_logits(self.handle)
        shape = (n_positions, self.model.n_vocab)
        return np.ctypeslib.as_array(pointer, shape=shape).copy()


def _n_batch(options: ContextOptions) -> int:
    # llama_decode aborts the process when a batch is larger than was said here.
    return min(options.n_batch, options.n_ctx)


def check_kv_type(kv_type: KVType, flash_attention: FlashAttention) -> None:
    """Refuse a KV cache that llama.cpp cannot compute with.

    Raises:
        ModelLoadError: its type needs flash attention, which is off.
    """
    if kv_type == "Q8_0" and flash_attention == "off":
        raise ModelLoadError(
            "a KV cache in Q8_0 needs flash attention, which is off",
            hint="leave `--flash-attention` at auto, or use `--kv-type f16`",
        )


@contextmanager
def open_context(model: TextModel, options: ContextOptions) -> Generator[TextContext]:
    """Make a context of `model`.

    Raises:
        ModelLoadError: the memory for it cannot be had.
    """
    c: Any = load_library().llama
    params = c.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = params.n_ubatch = _n_batch(options)
    params.n_outputs_max = min(options.n_outputs, params.n_batch)
    params.n_seq_max = 1
    # Layers with a window keep that and a batch; a conversation that goes on needs no more.
    params.swa_full = False
    params.n_threads = params.n_threads_batch = options.n_threads
    params.type_k = params.type_v = ggml.type_id(options.kv_type)
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    params.no_perf = True
    with complaints() as lines:
        handle = c.llama_init_from_model(model.handle, params)

    def error() -> ModelLoadError:
        return ModelLoadError(
            f"llama.cpp cannot make a context of {options.n_ctx} tokens{because(lines)}",
            hint=f"try a smaller `--ctx`; {_CARD_HINT}"
            if lacks_card_memory(lines)
            else "try a smaller `--ctx`",
        )

    with owned(handle, c.llama_free, error=error) as context:
        yield TextContext(context, model, options)
