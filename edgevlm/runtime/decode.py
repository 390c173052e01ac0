"""From the first token of an answer to its last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from edgevlm.errors import PromptError
from edgevlm.native.grammar import json_schema_grammar
from edgevlm.native.sampler import Sampler, SamplerOptions
from edgevlm.native.text_model import TextModel
from edgevlm.runtime.answer import StopReason
from edgevlm.runtime.answer_stream import AnswerStream
from edgevlm.runtime.loop_guard import LoopGuard
from edgevlm.runtime.prefix import KVCache
from edgevlm.runtime.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What ends an answer from outside.

    Attributes:
        should_stop: whoever asked does not want more.
        deadline: seconds of `time.perf_counter()`, or None.
    """

    should_stop: Callable[[], bool]
    deadline: float | None

    def reason(self) -> StopReason | None:
        """Return why the answer has to end now, None when it may go on."""
        if self.should_stop():
            return "cancelled"
        if self.deadline is not None and time.perf_counter() >= self.deadline:
            return "max_seconds"
        return None


def sampler_options(params: SamplingParams, *, n_vocab: int, n_ctx: int) -> SamplerOptions:
    """Return what the native sampler is told.

    Raises:
        PromptError: a bias for a token that there is not, or a schema that cannot be converted.
    """
    for token, _ in params.logit_bias:
        if token >= n_vocab:
            raise PromptError(
                f"logit_bias names token {token}, the model has {n_vocab}",
                hint=f"use token ids from 0 to {n_vocab - 1}",
            )
    grammar = params.grammar
    if params.json_schema is not None:
        grammar = json_schema_grammar(params.json_schema)
    return SamplerOptions(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        last_n=n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx),
        repeat_penalty=params.repeat_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        dry_multiplier=params.dry_multiplier,
        dry_base=params.dry_base,
        dry_allowed_length=params.dry_allowed_length,
        logit_bias=params.logit_bias,
        grammar=grammar,
    )


class Decoder:
    """Makes the tokens of one answer.

    Args:
        model: for the pieces of tokens and what ends an answer.
        cache: with the prompt read.
        sampler: picks.
        params: limits.
        stream: takes the text.
        ending: what ends the answer from outside.
    """

    def __init__(
        self,
        *,
        model: TextModel,
        cache: KVCache,
        sampler: Sampler,
        params: SamplingParams,
        stream: AnswerStream,
        ending: Ending,
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._params = params
        self._stream = stream
        self._ending = ending
        self._guard = LoopGuard() if params.loop_guard else None
        self.tokens: list[int] = []

    def first(self) -> int | None:
        """Return the first token, from the prompt's logits."""
        return self._next()

    def run(self, token: int | None) -> StopReason:
        """Go on from the first token; return why the answer ended."""
        n_ctx = self._cache.context.n_ctx
        reason: StopReason | None = None
        while token is not None and not self._model.is_end(token):
            reason = self._take(token)
            if reason is not None:
                break
            if self._cache.n_used >= n_ctx:
                reason = "context_full"
                break
            self._cache.append([token], n_logits=1)
            token = self._next()
        self._stream.finish()
        return reason or "end"

    def _take(self, token: int) -> StopReason | None:
        self.tokens.append(token)
        if self._stream.feed(self._model.piece(token, special=self._model.is_tag(token))):
            return "stop_string"
        if self._guard is not None and self._guard.sees_loop(token):
            return "loop"
        limit = self._params.max_tokens
        if limit is not None and len(self.tokens) >= limit:
            return "max_tokens"
        return self._ending.reason()

    def _next(self) -> int | None:
        context = self._cache.context
        # A grammar is the answer's, not the reasoning's.
        return self._sampler.next_token(context, constrained=not self._stream.is_reasoning)
