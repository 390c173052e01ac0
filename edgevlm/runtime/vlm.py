"""One loaded vision-language model: `open_vlm` owns model, context and projector together."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelLoadError
from edgevlm.native.projector import EncodedImage, TextChunk, open_projector
from edgevlm.native.sampler import Sampler, open_sampler
from edgevlm.native.text_model import (
    ContextOptions,
    FlashAttention,
    KVType,
    ModelOptions,
    TextContext,
    TextModel,
    open_context,
    open_text_model,
)
from edgevlm.runtime.answer import Answer, ContextPolicy, ImageCost, StopReason, Timings
from edgevlm.runtime.layout import Layout, Layouter, Pixels
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message, conversation
from edgevlm.runtime.sampling import SamplingParams

Prompt = str | Sequence[Message]
DEFAULT_N_CTX = 4096
_FILE_BYTES_PER_THREAD = 32 << 20


@dataclass(frozen=True, kw_only=True)
class _Prefilled:
    """What it took to bring a prompt into the context."""

    encoded: tuple[EncodedImage, ...]
    prefill_ms: float


class VLM:
    """A loaded model. Made by `open_vlm`; one conversation at a time, from one thread."""

    def __init__(
        self,
        *,
        model: TextModel,
        context: TextContext,
        layouter: Layouter,
        sampling_defaults: Mapping[str, float | int],
    ) -> None:
        self._sampling_defaults = sampling_defaults
        self._model = model
        self._context = context
        self._layouter = layouter

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds, prompt and answer together."""
        return self._context.n_ctx

    @property
    def sampling_defaults(self) -> dict[str, float | int]:
        """What the file says how to sample (`general.sampling.*`), by SamplingParams' names."""
        return dict(self._sampling_defaults)

    @property
    def n_vocab(self) -> int:
        """Number of tokens of the vocabulary."""
        return self._model.n_vocab

    def count_visual_tokens(self, width: int, height: int) -> int:
        """Return how many tokens an image of this size costs; nothing is encoded."""
        return self._layouter.count_visual_tokens(width, height)

    def token_ids(self, prompt: Prompt, images: Sequence[Pixels] = ()) -> list[int]:
        """Return the prompt's token ids as the text model gets them, images as VISUAL_TOKEN."""
        return self._layouter.lay_out(conversation(prompt, images)).token_ids

    def generate(
        self,
        prompt: Prompt,
        images: Sequence[Pixels] = (),
        *,
        params: SamplingParams | None = None,
        think: bool | None = None,
        context_policy: ContextPolicy = "error",
        should_stop: Callable[[], bool] = lambda: False,
        on_images: Callable[[Sequence[ImageCost]], None] = lambda _: None,
        on_text: Callable[[str], None] = lambda _: None,
        on_reasoning: Callable[[str], None] = lambda _: None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Answer a question or go on with a conversation.

        Args:
            prompt: a question, or messages.
            images: RGB uint8 [height, width, 3], put before the question.
            params: how to sample; None for greedy.
            think: what the chat template is told as `enable_thinking`; None: nothing.
            context_policy: what happens to a conversation that does not fit.
            should_stop: asked at every token; true ends the answer with what there is.
            on_images: told what the images cost, before the first is encoded.
            on_text: told each piece of text as it comes.
            on_reasoning: told each piece of a thinking model's reasoning.
            on_note: told what was done to a conversation that did not fit.

        Raises:
            ContextOverflowError: the prompt leaves no room for an answer.
            ImageError: an image that the projector cannot take.
            PromptError: the chat template fails, or there is no projector for the images.
        """
        params = params if params is not None else SamplingParams()
        started = time.perf_counter()
        layout = self._lay_out(prompt, images, n_more=1)
        layout_ms = _ms_since(started)
        if layout.costs:
            on_images(layout.costs)
        started = time.perf_counter()  # whoever looks on is not counted
        prefilled = self._prefill(layout)
        with open_sampler(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed,
        ) as sampler:
            first = sampler.next_token(self._context)
            ttft_ms = layout_ms + _ms_since(started)
            text, tokens, stop_reason, decode_ms = self._decode(
                first, sampler, params, on_text, should_stop
            )
        images_ms = tuple(image.encode_ms for image in prefilled.encoded)
        return Answer(
            text=text,
            token_ids=tuple(tokens),
            n_prompt_tokens=layout.n_tokens,
            n_visual_tokens=layout.n_visual_tokens,
            images=layout.costs,
            stop_reason=stop_reason,
            timings=Timings(
                preprocess_ms=layout_ms + sum(image.preprocess_ms for image in prefilled.encoded),
                encode_ms=sum(images_ms),
                prefill_ms=prefilled.prefill_ms,
                ttft_ms=ttft_ms,
                decode_ms=decode_ms,
                n_decoded=max(0, len(tokens) - (stop_reason != "end")),
                image_encode_ms=images_ms,
            ),
        )

    def first_logits(self, prompt: Prompt, images: Sequence[Pixels] = ()) -> NDArray[np.float32]:
        """Return [n_vocab] float32: logits of the first token of the answer."""
        layout = self._lay_out(prompt, images, n_more=0)
        self._prefill(layout)
        return self._context.logits(1)[0]

    def answer_logits(
        self, prompt: Prompt, images: Sequence[Pixels] = (), *, answer: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the logits along a given answer.

        Args:
            prompt: a question, or messages.
            images: RGB uint8 [height, width, 3], put before the question.
            answer: token ids, at least one.

        Returns:
            [len(answer), n_vocab] float32; row i predicts answer[i] from all before it.
        """
        layout = self._lay_out(prompt, images, n_more=len(answer) - 1)
        self._prefill(layout)
        rows = [self._context.logits(1)]
        step = self._context.n_outputs
        for start in range(0, len(answer) - 1, step):
            part = answer[start : min(start + step, len(answer) - 1)]
            self._context.decode_tokens(part, n_logits=len(part))
            rows.append(self._context.logits(len(part)))
        return np.concatenate(rows)

    def _lay_out(self, prompt: Prompt, images: Sequence[Pixels], *, n_more: int) -> Layout:
        layout = self._layouter.lay_out(conversation(prompt, images))
        layout.check_room(self.n_ctx, n_more=n_more, n_ctx_train=self._model.n_ctx_train)
        return layout

    def _prefill(self, layout: Layout) -> _Prefilled:
        """Encode the images, then bring the prompt into an empty context; its last logits stay."""
        encoded = tuple(self._layouter.projector.encode(image) for image in layout.images)
        tiles = chain.from_iterable(image.tiles for image in encoded)
        started = time.perf_counter()
        context = self._context
        context.clear()
        for number, chunk in enumerate(layout.chunks):
            if isinstance(chunk, TextChunk):
                is_last = number == len(layout.chunks) - 1
                context.decode_tokens(chunk.tokens, n_logits=int(is_last))
                continue
            rows = next(tiles, None)
            if rows is None or len(rows) != chunk.n_tokens:
                raise RuntimeError("libmtmd counted other visual tokens than it encoded")
            context.decode_embeddings(
                rows,
                chunk.positions + np.int32(context.position),
                n_positions_used=chunk.n_positions_used,
                causal=chunk.causal,
            )
        context.synchronize()
        return _Prefilled(encoded=encoded, prefill_ms=_ms_since(started))

    def _decode(
        self,
        token: int,
        sampler: Sampler,
        params: SamplingParams,
        on_text: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> tuple[str, list[int], StopReason, float]:
        started = time.perf_counter()
        pieces: list[str] = []
        tokens: list[int] = []
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")

        def emit(data: bytes, *, final: bool = False) -> None:
            text = utf8.decode(data, final)
            if text:
                pieces.append(text)
                on_text(text)

        stop_reason: StopReason = "end"
        while not self._model.is_end(token):
            tokens.append(token)
            emit(self._model.piece(token))
            if should_stop():
                stop_reason = "cancelled"
                break
            if params.max_tokens is not None and len(tokens) >= params.max_tokens:
                stop_reason = "max_tokens"
                break
            if self._context.n_used >= self.n_ctx:
                stop_reason = "context_full"
                break
            self._context.decode_tokens([token], n_logits=1)
            token = sampler.next_token(self._context)
        emit(b"", final=True)
        return "".join(pieces), tokens, stop_reason, _ms_since(started)


@contextmanager
def open_vlm(
    *,
    model: Path,
    mmproj: Path | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    kv_type: KVType = "F16",
    flash_attention: FlashAttention = "auto",
    strict: bool = False,
) -> Generator[VLM]:
    """Load a text model and its projector; everything is freed when the block ends.

    Args:
        model: GGUF file of the text model.
        mmproj: GGUF file of the projector; None for text alone.
        n_ctx: context length in tokens; None for 4096 or the model's own, whichever is smaller.
        n_threads: None for every processor this process may use; fewer for a model so small that
            its threads would wait for each other (one per 32 MB of the file).
        device: "auto", "cpu", "cuda", "metal" or "vulkan".
        gpu_layers: layers on the GPU; None for all.
        kv_type: tensor type of the KV cache.
        flash_attention: "auto" asks the device; a KV cache in Q8_0 needs it.
        strict: KV cache in F32 and no flash attention, to compare with transformers.

    Raises:
        SourceNotFoundError: a file is missing.
        GGUFError: a file is broken or of the wrong kind.
        ModelLoadError: the files do not belong together, or llama.cpp refuses them.
    """
    if kv_type == "Q8_0" and flash_attention == "off":
        raise ModelLoadError(
            "a KV cache in Q8_0 needs flash attention, which is off",
            hint="leave `--flash-attention` at auto, or use `--kv-type f16`",
        )
    text_file, facts = check_text_model(model)
    span = check_projector(mmproj, text_file) if mmproj is not None else None
    with ExitStack() as stack:
        text_model = stack.enter_context(
            open_text_model(model, ModelOptions(device=device, n_gpu_layers=gpu_layers))
        )
        options = ContextOptions(
            n_ctx=_context_length(n_ctx, text_model.n_ctx_train),
            n_threads=n_threads or default_threads(model),
            kv_type="F32" if strict else kv_type,
            flash_attention="off" if strict else flash_attention,
        )
        context = stack.enter_context(open_context(text_model, options))
        projector = None
        if mmproj is not None:
            projector = stack.enter_context(
                open_projector(
                    mmproj,
                    text_model,
                    n_threads=n_threads or default_threads(mmproj),
                    device=device,
                    flash_attention=options.flash_attention,
                )
            )
        layouter = Layouter(model=text_model, projector=projector, facts=facts, span=span)
        yield VLM(
            model=text_model,
            context=context,
            layouter=layouter,
            sampling_defaults=facts.sampling,
        )


def _context_length(asked: int | None, n_ctx_train: int) -> int:
    if asked is None:
        return min(DEFAULT_N_CTX, n_ctx_train)
    if not 0 < asked <= n_ctx_train:
        raise ModelLoadError(
            f"a context of {asked} tokens is asked, the model was trained for {n_ctx_train}",
            hint=f"use `--ctx` between 1 and {n_ctx_train}",
        )
    return asked


def default_threads(file: Path) -> int:
    """Return how many threads run the model of a GGUF file when nobody says.

    ggml's threads meet at a barrier after every operation, spinning: on a busy machine a second
    thread made the 6 MB of `shapes` 40 times slower (tokens per second), not faster.
    """
    return max(1, min(_n_processors(), file.stat().st_size // _FILE_BYTES_PER_THREAD))


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
