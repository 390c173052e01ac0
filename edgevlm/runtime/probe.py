"""One prompt looked into: the model is led along an answer, or goes on greedily from within one.

A prompt is read cold, into an empty KV cache, so that its numbers do not depend on what was asked
before, not in one bit. Only the embeddings of its images may be known already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.text_model import TextModel
from edgevlm.runtime.answer import StopReason
from edgevlm.runtime.answer_stream import AnswerStream, opened_tag
from edgevlm.runtime.embedding_cache import Embeddings
from edgevlm.runtime.layout import Layout, Layouter
from edgevlm.runtime.loop_guard import LoopGuard
from edgevlm.runtime.prefix import KVCache


@dataclass(frozen=True, kw_only=True)
class GreedyAnswer:
    """A greedy answer, of which the beginning may have been given.

    Attributes:
        tokens: token ids, without the one that ended it.
        end_token: that one; None for an answer that was cut.
        text: reasoning and control tokens left out.
        stop_reason: "end", "max_tokens", "context_full" or "loop".
    """

    tokens: tuple[int, ...]
    end_token: int | None
    text: str
    stop_reason: StopReason


class Probe:
    """A prompt of a loaded model. Made by `VLM.probe`; the last one made owns the KV cache.

    Args:
        model: the text model.
        cache: its context.
        layouter: for the projector.
        layout: the prompt.
        known: embeddings of images; those that are missing are encoded and put there.

    Attributes:
        layout: the prompt.
        prefill_ms: of the last time that the prompt was read; encoding is not in it.
    """

    def __init__(
        self,
        *,
        model: TextModel,
        cache: KVCache,
        layouter: Layouter,
        layout: Layout,
        known: Embeddings | None,
    ) -> None:
        self.layout = layout
        self.prefill_ms = 0.0
        self._model = model
        self._cache = cache
        self._layouter = layouter
        self._known = known
        self._first: NDArray[np.float32] | None = None
        self._n_items = 0

    def forced(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Lead the model along an answer.

        Args:
            tokens: token ids of the answer.

        Yields:
            [n, n_vocab] float32, a few rows at a time, len(tokens) + 1 in all; row i predicts what
            stands behind tokens[:i].

        Raises:
            ContextOverflowError: prompt and answer do not fit.
        """
        self._check_room(len(tokens))
        yield self._rewound()
        context = self._cache.context
        for start in range(0, len(tokens), context.n_outputs):
            part = tokens[start : start + context.n_outputs]
            self._cache.append(part, n_logits=len(part))
            yield context.logits(len(part))

    def greedy(self, *, max_tokens: int, begun: Sequence[int] = ()) -> GreedyAnswer:
        """Answer with the most likely token at each place.

        Args:
            max_tokens: of the whole answer.
            begun: token ids that it begins with; the last one may end it.

        Raises:
            ContextOverflowError: the prompt and what is begun do not fit.
        """
        self._check_room(len(begun))
        if begun and self._model.is_end(begun[-1]):
            return self._answer(begun[:-1], end_token=begun[-1], stop_reason="end")
        context = self._cache.context
        rows = self._rewound(begun[:-1])
        tokens, guard = list(begun), LoopGuard()
        stop_reason: StopReason = "max_tokens"
        if begun:
            self._cache.append(begun[-1:], n_logits=1)
            rows = context.logits(1)
        while len(tokens) < max_tokens:
            token = int(rows[-1].argmax())
            if self._model.is_end(token):
                return self._answer(tokens, end_token=token, stop_reason="end")
            tokens.append(token)
            if guard.sees_loop(token) or self._cache.n_used >= context.n_ctx:
                stop_reason = "context_full" if self._cache.n_used >= context.n_ctx else "loop"
                break
            self._cache.append([token], n_logits=1)
            rows = context.logits(1)
        return self._answer(tokens, end_token=None, stop_reason=stop_reason)

    def _answer(
        self, tokens: Sequence[int], *, end_token: int | None, stop_reason: StopReason
    ) -> GreedyAnswer:
        stream = AnswerStream(tags=opened_tag(self.layout.end))
        for token in tokens:
            stream.feed(self._model.piece(token, special=self._model.is_tag(token)))
        stream.finish()
        return GreedyAnswer(
            tokens=tuple(tokens), end_token=end_token, text=stream.text, stop_reason=stop_reason
        )

    def _check_room(self, n_more: int) -> None:
        self.layout.check_room(
            self._cache.context.n_ctx, n_more=n_more, n_ctx_train=self._model.n_ctx_train
        )

    def _rewound(self, tokens: Sequence[int] = ()) -> NDArray[np.float32]:
        """Bring the cache to the prompt and `tokens`; return the prompt's last row of logits.

        What stands there already stays; a memory that cannot forget its end is filled anew.
        """
        n_wanted = self._n_items + len(tokens)
        held = self._cache.held[self._n_items : n_wanted]
        if self._first is not None and held == list(tokens) and self._cache.rewind(n_wanted):
            return self._first
        started = time.perf_counter()
        prefilled = self._cache.prefill(
            self.layout, self._layouter.projector, reuse=False, known=self._known
        )
        self.prefill_ms = (time.perf_counter() - started) * 1e3 - sum(prefilled.image_encode_ms)
        self._n_items = len(self._cache.held)
        self._first = self._cache.context.logits(1)
        step = self._cache.context.n_batch
        for start in range(0, len(tokens), step):
            self._cache.append(tokens[start : start + step], n_logits=0)
        return self._first
