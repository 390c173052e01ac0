"""A text model's context: tokens or embeddings in, float32 logits out.

Structures and functions: llama.h of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelLoadError
from edgevlm.native import ggml
from edgevlm.native.channel_sums import ChannelSums
from edgevlm.native.devices import CARD_HINT, lacks_card_memory
from edgevlm.native.graph_callback import GraphCallback
from edgevlm.native.handle import owned
from edgevlm.native.library import because, complaints, load_library
from edgevlm.native.rope_positions import RopePositions
from edgevlm.native.text_model import TextModel

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
# Kinds of rows that a text model reads, see ChannelSums.
TEXT_ROWS, IMAGE_ROWS = "text", "image"

KVType = Literal["F16", "F32", "Q8_0"]
FlashAttention = Literal["auto", "on", "off"]


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
        has_places: embeddings may have other rotary positions than in the cache.
        spread: every so many positions keep their logits too; llama.cpp leaves out the last layer's
            feed-forward for all others. 0: none but those asked for.
    """

    n_ctx: int
    n_batch: int = 512
    n_outputs: int = 16
    n_threads: int
    kv_type: KVType = "F16"
    flash_attention: FlashAttention = "auto"
    has_places: bool = False
    spread: int = 0


class TextContext:
    """The KV cache of one conversation. Made by `open_context`.

    Attributes:
        n_ctx: tokens that fit.
        n_batch: most tokens per decode.
        n_outputs: most positions whose logits one decode keeps.
        n_used: cells of the KV cache in use, one per token.
        position: of the next token. An image of an M-RoPE model moves it by less than its tokens.
    """

    def __init__(
        self,
        handle: int,
        model: TextModel,
        options: ContextOptions,
        sums: ChannelSums | None = None,
        callback: GraphCallback | None = None,
        rope: RopePositions | None = None,
    ) -> None:
        self._c: Any = load_library().llama
        self._sums, self._callback = sums, callback
        self._rope = rope
        self.handle = handle
        self.model = model
        self.options = options
        # llama.cpp rounds up to 256: what the user asked for is what the user gets.
        self.n_ctx = min(options.n_ctx, self._c.llama_n_ctx(handle))
        self.n_batch = _n_batch(options)
        self.n_outputs = min(options.n_outputs, self.n_batch)
        self.n_used = 0
        self.position = 0
        self._n_kept = self._n_rows = 0

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
            places = np.tile(positions, (4, 1)) if self.model.has_four_positions else None
            self._decode(n_part, token=part, pos=positions, n_logits=kept, places=places)
            self.position += n_part

    def decode_embeddings(
        self,
        rows: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        n_positions_used: int,
        causal: bool = True,
        places: NDArray[np.int32] | None = None,
    ) -> None:
        """Append image tokens as embeddings, without logits.

        Args:
            rows: [n_tokens, n_embd_inp] float32.
            positions: [n_positions, n_tokens] int32, absolute.
            n_positions_used: how far the next position moves.
            causal: false for models whose image tokens see each other both ways.
            places: what rotary embeddings turn by where that is not `positions`, of the same shape;
                the context was opened for it.

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
                chosen = None if places is None else places[:, start : start + step]
                self._decode(len(part), embd=part, pos=pos, n_logits=0, places=chosen)
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
        places: NDArray[np.int32] | None = None,
    ) -> None:
        if self._rope is not None:
            self._rope.wanted = places
        wants_logits = np.zeros(n_tokens, dtype=np.int8)
        if self.options.spread:
            wants_logits[:: self.options.spread] = 1
        wants_logits[n_tokens - n_logits :] = 1
        batch = self._c.llama_batch(n_tokens=n_tokens)  # what stays NULL means sequence 0
        int32_p = ctypes.POINTER(ctypes.c_int32)
        if token is not None:
            batch.token = token.ctypes.data_as(int32_p)
        if embd is not None:
            batch.embd = embd.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = pos.ctypes.data_as(int32_p)
        batch.logits = wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        with complaints() as lines, self._watched(n_tokens, is_image=embd is not None):
            status = self._c.llama_decode(self.handle, batch)
        if status:
            raise ModelLoadError(
                f"llama.cpp failed to decode {n_tokens} tokens (status {status}){because(lines)}",
                hint="with little memory, try a smaller `--ctx`",
            )
        self.n_used += n_tokens
        self._n_kept, self._n_rows = n_logits, int(wants_logits.sum())

    def _watched(self, n_tokens: int, *, is_image: bool) -> AbstractContextManager[None]:
        if self._callback is None:
            return nullcontext()
        sums = self._sums
        is_counted = sums is not None and not (n_tokens == 1 and sums.leaves_out_steps)
        is_written = self._rope is not None and self._rope.wanted is not None
        if not is_counted and not is_written:
            return nullcontext()
        if sums is not None:
            sums.kind = IMAGE_ROWS if is_image else TEXT_ROWS
        return self._callback.one_graph(watchers=is_written, results=is_counted)

    def synchronize(self) -> None:
        """Wait until the device has finished; for honest clocks."""
        self._c.llama_synchronize(self.handle)

    def logits(self, n_positions: int) -> NDArray[np.float32]:
        """Return [n_positions, n_vocab]: the logits that the last decode kept, in order."""
        if n_positions != self._n_kept:
            raise ValueError(f"{n_positions} rows of logits asked, {self._n_kept} were kept")
        pointer = self._c.llama_get_logits(self.handle)
        shape = (self._n_rows, self.model.n_vocab)
        rows = np.ctypeslib.as_array(pointer, shape=shape)
        return rows[self._n_rows - n_positions :].copy()


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
def open_context(
    model: TextModel, options: ContextOptions, *, sums: ChannelSums | None = None
) -> Generator[TextContext]:
    """Make a context of `model`; `sums` is told of all that goes through its matrices.

    Raises:
        ModelLoadError: the memory for it cannot be had, or the installed ggml has other tensors
            than those whose positions can be written.
    """
    c: Any = load_library().llama
    params = c.llama_context_default_params()
    params.n_ctx = options.n_ctx
    params.n_batch = params.n_ubatch = _n_batch(options)
    n_spread = -(-params.n_batch // options.spread) if options.spread else 0
    params.n_outputs_max = min(options.n_outputs + n_spread, params.n_batch)
    params.n_seq_max = 1
    # Layers with a window keep that and a batch; a conversation that goes on needs no more.
    params.swa_full = False
    params.n_threads = params.n_threads_batch = options.n_threads
    params.type_k = params.type_v = ggml.type_id(options.kv_type)
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    params.no_perf = True
    rope = RopePositions() if options.has_places or model.has_four_positions else None
    if rope is not None and rope.fault:
        raise ModelLoadError(
            "this model was trained with other positions than llama.cpp gives it, and they cannot"
            f" be written: {rope.fault}",
            hint="install the llama-cpp-python that edgevlm names",
        )
    callback = None
    if sums is not None or rope is not None:
        callback = GraphCallback(
            [rope] if rope is not None else [], [sums] if sums is not None else []
        )
        callback.install(params)
    with complaints() as lines:
        handle = c.llama_init_from_model(model.handle, params)

    def error() -> ModelLoadError:
        return ModelLoadError(
            f"llama.cpp cannot make a context of {options.n_ctx} tokens{because(lines)}",
            hint=f"try a smaller `--ctx`; {CARD_HINT}"
            if lacks_card_memory(lines)
            else "try a smaller `--ctx`",
        )

    with owned(handle, c.llama_free, error=error) as context:
        yield TextContext(context, model, options, sums, callback, rope)
