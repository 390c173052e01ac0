"""One loaded vision-language model: `open_vlm` owns model, context and projector together."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.channel_sums import ChannelSums
from edgevlm.native.projector import EncodedImage, Projector, open_projector
from edgevlm.native.sampler import open_sampler
from edgevlm.native.text_context import (
    ContextOptions,
    FlashAttention,
    KVType,
    TextContext,
    check_kv_type,
    open_context,
)
from edgevlm.native.text_model import ModelOptions, TextModel, open_text_model
from edgevlm.runtime.answer import Answer, ContextPolicy, ImageCost, Timings
from edgevlm.runtime.answer_stream import REASONING_TAGS, AnswerStream, opened_tag
from edgevlm.runtime.class_token import check_class_token
from edgevlm.runtime.context_length import context_length
from edgevlm.runtime.context_policy import ContextFitter, Limits
from edgevlm.runtime.decode import Decoder, Ending, sampler_options
from edgevlm.runtime.embedding_cache import Embeddings
from edgevlm.runtime.frame_projector import has_places, image_encoder
from edgevlm.runtime.layout import Layout, Layouter, Pixels
from edgevlm.runtime.prefix import KVCache
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.probe import Probe
from edgevlm.runtime.prompt import ImageSpan, Message, conversation
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.threads import default_threads

Prompt = str | Sequence[Message]
# Logits of every position would cost as much again as the model for a large vocabulary.
_SPREAD = 4


class VLM:
    """A loaded model. Made by `open_vlm`; one conversation at a time, from one thread.

    Attributes:
        cache: what the KV cache holds.
        layouter: lays out conversations.
    """

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
        self.cache = KVCache(context)
        self._fitter = ContextFitter()
        self.layouter = layouter

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds, prompt and answer together."""
        return self.cache.context.n_ctx

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
        return self.layouter.count_visual_tokens(width, height)

    def forget(self) -> None:
        """Empty the KV cache; the next answer reads and encodes everything anew."""
        self.cache.clear()
        self.cache.embeddings.clear()

    def token_ids(self, prompt: Prompt, images: Sequence[Pixels] = ()) -> list[int]:
        """Return the prompt's token ids as the text model gets them, images as VISUAL_TOKEN."""
        return self.layouter.lay_out(conversation(prompt, images)).token_ids

    def encode(self, pixels: Pixels) -> EncodedImage:
        """Encode one image anew, whatever was encoded before.

        Args:
            pixels: RGB uint8 [height, width, 3].

        Returns:
            Its embeddings; opened `strict`, with the pixels that the vision tower was given.
        """
        return self.layouter.projector().encode(pixels)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of plain text: no template, no control tokens."""
        return self._model.tokenize(text, parse_special=False)

    def spelled(self, tokens: Sequence[int]) -> str:
        """Return what token ids spell: control tokens too, visual and unknown ones left out."""
        known = [token for token in tokens if 0 <= token < self.n_vocab]
        return b"".join(self._model.piece(token, special=True) for token in known).decode(
            errors="replace"
        )

    def is_end(self, token: int) -> bool:
        """Return whether `token` ends an answer."""
        return self._model.is_end(token)

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
        asked = time.perf_counter()
        params = params if params is not None else SamplingParams()
        ending = Ending(
            should_stop=should_stop,
            deadline=None if params.max_seconds is None else asked + params.max_seconds,
        )
        if think is not None and not self.layouter.takes_think:
            on_note("this model's chat template knows no switch for thinking")
        layout = self._fitter.fit(
            conversation(prompt, images),
            lambda messages: self.layouter.lay_out(messages, think=think),
            policy=context_policy,
            limits=self._limits(params),
            summarize=lambda request, n_tokens: self._summarize(request, n_tokens, ending),
            on_note=on_note,
        )
        layout_ms = _ms_since(asked)
        if layout.costs:
            on_images(layout.costs)
        stream = AnswerStream(
            stop=params.stop,
            tags=opened_tag(layout.end),
            on_text=on_text,
            on_reasoning=on_reasoning,
        )
        return self._answer(layout, params, stream, ending, layout_ms=layout_ms)

    def _limits(self, params: SamplingParams) -> Limits:
        n_ctx = self.n_ctx
        n_wanted = n_ctx if params.max_tokens is None else params.max_tokens
        return Limits(
            n_ctx=n_ctx,
            n_ctx_train=self._model.n_ctx_train,
            n_answer=max(1, min(n_wanted, n_ctx // 4)),
        )

    def _summarize(self, layout: Layout, n_tokens: int, ending: Ending) -> str:
        params = SamplingParams(max_tokens=n_tokens)
        stream = AnswerStream(tags=opened_tag(layout.end))
        return self._answer(layout, params, stream, ending, layout_ms=0.0).text

    def _answer(
        self,
        layout: Layout,
        params: SamplingParams,
        stream: AnswerStream,
        ending: Ending,
        *,
        layout_ms: float,
    ) -> Answer:
        started = time.perf_counter()
        options = sampler_options(params, n_vocab=self.n_vocab, n_ctx=self.n_ctx)
        with open_sampler(self._model, options) as sampler:
            if options.looks_back:
                sampler.remember(layout.text_tokens[-options.last_n :])
            decoder = Decoder(
                model=self._model,
                cache=self.cache,
                sampler=sampler,
                params=params,
                stream=stream,
                ending=ending,
            )
            prefilled = self.cache.prefill(
                layout, self.layouter.projector, should_end=lambda: ending.reason() is not None
            )
            if prefilled.is_complete:
                first = decoder.first()
                ttft_ms = layout_ms + _ms_since(started)
                began = time.perf_counter()
                stop_reason = decoder.run(first)
                decode_ms = _ms_since(began)
            else:
                ttft_ms, decode_ms = layout_ms + _ms_since(started), 0.0
                stop_reason = ending.reason() or "cancelled"
        n_tokens = len(decoder.tokens)
        return Answer(
            text=stream.text,
            reasoning=stream.reasoning,
            token_ids=tuple(decoder.tokens),
            n_prompt_tokens=layout.n_tokens,
            n_reused_tokens=prefilled.n_reused_tokens,
            n_visual_tokens=layout.n_visual_tokens,
            images=layout.costs,
            stop_reason=stop_reason,
            timings=Timings(
                preprocess_ms=layout_ms + prefilled.preprocess_ms,
                encode_ms=sum(prefilled.image_encode_ms),
                prefill_ms=prefilled.prefill_ms,
                ttft_ms=ttft_ms,
                decode_ms=decode_ms,
                n_decoded=max(0, n_tokens - (stop_reason != "end")),
                image_encode_ms=prefilled.image_encode_ms,
            ),
        )

    def probe(
        self,
        prompt: Prompt,
        images: Sequence[Pixels] = (),
        *,
        known: Embeddings | None = None,
        think: bool | None = None,
    ) -> Probe:
        """Return a prompt to look into, as it is read cold; see `Probe`."""
        return Probe(
            model=self._model,
            cache=self.cache,
            layouter=self.layouter,
            layout=self.layouter.lay_out(conversation(prompt, images), think=think),
            known=known,
        )

    def first_logits(self, prompt: Prompt, images: Sequence[Pixels] = ()) -> NDArray[np.float32]:
        """Return [n_vocab] float32: logits of the first token of the answer."""
        return next(self.probe(prompt, images).forced(()))[0]

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
        return np.concatenate(list(self.probe(prompt, images).forced(answer[:-1])))


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
    sums: ChannelSums | None = None,
    chat_template: str | None = None,
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
        strict: KV cache in F32, no flash attention, the vision tower's input observed: to compare
            with transformers.
        sums: told of all that goes through the matrices of both files; every fourth position then
            keeps its logits, for without them the last layer is left out.
        chat_template: name of one of the file's chat templates; None for the default.

    Raises:
        SourceNotFoundError: a file is missing.
        GGUFError: a file is broken or of the wrong kind.
        ModelLoadError: the files do not belong together, or llama.cpp refuses them.
    """
    check_kv_type(kv_type, flash_attention)
    text_file, facts = check_text_model(model)
    span = check_projector(mmproj, text_file) if mmproj is not None else None
    with ExitStack() as stack:
        asked = ModelOptions(device=device, n_gpu_layers=gpu_layers)
        text_model = stack.enter_context(open_text_model(model, asked))
        text_model.add_ends(facts.end_token_ids)
        text_model.add_tags([tag for tags in REASONING_TAGS for tag in tags])
        options = ContextOptions(
            n_ctx=context_length(n_ctx, text_model.n_ctx_train),
            n_batch=max(ContextOptions.n_batch, span.n_whole if span else 0),
            n_threads=n_threads or default_threads(model),
            kv_type="F32" if strict else kv_type,
            flash_attention="off" if strict else flash_attention,
            has_places=has_places(span),
            spread=_SPREAD if sums is not None else 0,
        )
        context = stack.enter_context(open_context(text_model, options, sums=sums))
        projector = None
        if mmproj is not None and span is not None:
            opened = _projector_of(
                mmproj,
                text_model,
                span,
                n_threads=n_threads or default_threads(mmproj),
                device=device,
                strict=strict,
                flash_attention=options.flash_attention,
                sums=sums,
            )
            projector = stack.enter_context(opened)
        canvas = image_encoder(projector, span, text_file)
        yield VLM(
            model=text_model,
            context=context,
            layouter=Layouter(
                model=text_model,
                projector=canvas,
                facts=facts,
                span=span,
                chat_template=chat_template,
            ),
            sampling_defaults=facts.sampling,
        )


def _projector_of(
    path: Path,
    model: TextModel,
    span: ImageSpan,
    *,
    n_threads: int,
    device: str,
    strict: bool,
    flash_attention: FlashAttention,
    sums: ChannelSums | None,
) -> AbstractContextManager[Projector]:
    return open_projector(
        path,
        model,
        n_threads=n_threads,
        device=device,
        flash_attention=flash_attention,
        observe=strict,
        sums=sums,
        row_end=span.row_end,
        max_tokens=span.max_tokens,
        row_order=check_class_token(path),
        plain_scale=span.plain_scale,
        smooth_table=span.smooth_table,
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
