"""Sampler chains of libllama: which token comes next, and what a grammar allows."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.errors import ModelLoadError
from edgevlm.native.grammar import Grammar, open_grammar
from edgevlm.native.handle import owned
from edgevlm.native.library import load_library
from edgevlm.native.text_context import TextContext
from edgevlm.native.text_model import TextModel

# struct llama_token_data of llama.h.
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# A repetition across one of these costs nothing with DRY: llama.cpp's own defaults.
_DRY_BREAKERS = (b"\n", b":", b'"', b"*")


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """What a chain is made of.

    Attributes:
        temperature: 0 takes the most likely token, always.
        top_k: most candidates; 0 for all.
        top_p: cumulative probability kept; 1 for all.
        min_p: probability relative to the best candidate; 0 for all.
        seed: 32 bits.
        last_n: tokens that penalties and DRY look back at; 0 for none.
        repeat_penalty: 1 for off.
        frequency_penalty: 0 for off.
        presence_penalty: 0 for off.
        dry_multiplier: 0 for off.
        dry_base: at least 1.
        dry_allowed_length: in tokens.
        logit_bias: (token id, what is added to its logit).
        grammar: GBNF text, or None.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None

    @property
    def penalties(self) -> tuple[float, float, float] | None:
        """Repeat, frequency and presence penalty; None when all are off."""
        penalties = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties if self.last_n and penalties != (1.0, 0.0, 0.0) else None

    @property
    def has_dry(self) -> bool:
        """Whether DRY is on."""
        return bool(self.dry_multiplier and self.last_n)

    @property
    def looks_back(self) -> bool:
        """Whether the tokens before count."""
        return self.penalties is not None or self.has_dry


class Sampler:
    """Picks tokens. Made by `open_sampler`."""

    def __init__(self, handle: int, model: TextModel, grammar: Grammar | None) -> None:
        self._c: Any = load_library().llama
        self._handle = handle
        self._model = model
        self._grammar = grammar

    def remember(self, tokens: Sequence[int]) -> None:
        """Let penalties and DRY count `tokens`, which stand before the answer."""
        for token in tokens:
            self._c.llama_sampler_accept(self._handle, token)

    def next_token(self, context: TextContext, *, constrained: bool = True) -> int | None:
        """Return the next token id, from the last position of the last decode.

        Args:
            context: whose last decode kept one position's logits.
            constrained: whether the grammar, if there is one, counts here.

        Returns:
            None when the grammar allows no token at all, the end of the answer included.
        """
        if self._grammar is None or not constrained:
            # It accepts the token too, so that penalties count it.
            return int(self._c.llama_sampler_sample(self._handle, context.handle, -1))
        # A grammar put first looks at every token of the vocabulary, 9 to 46 ms for 150,000: the
        # token is chosen freely, and only where the grammar refuses it, chosen again.
        token = self._choose(context, None)
        if not self._grammar.allows(token):
            token = self._choose(context, self._grammar)
            if not self._grammar.allows(token):
                return None
        self._c.llama_sampler_accept(self._handle, token)
        if not self._model.is_native_end(token):  # llama.cpp aborts on an end in a grammar's midst
            self._grammar.accept(token)
        return token

    def _choose(self, context: TextContext, grammar: Grammar | None) -> int:
        c = self._c
        logits = context.logits(1)[0]
        data = np.zeros(len(logits), dtype=_TOKEN_DATA)
        data["id"] = np.arange(len(logits), dtype=np.int32)
        data["logit"] = logits
        array = c.llama_token_data_array(
            data=data.ctypes.data_as(c.llama_token_data_p),
            size=len(data),
            selected=-1,
            sorted=False,
        )
        if grammar is not None:
            grammar.apply(array)
        c.llama_sampler_apply(self._handle, ctypes.byref(array))
        return int(array.data[array.selected].id)


@contextmanager
def open_sampler(model: TextModel, options: SamplerOptions) -> Generator[Sampler]:
    """Build a sampler chain; at temperature 0 it takes the most likely token, always.

    The order is llama.cpp's own: bias, penalties, DRY, top-k, top-p, min-p, temperature, draw.

    Raises:
        PromptError: the grammar cannot be used.
    """
    c: Any = load_library().llama
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    with ExitStack() as stack:
        handle = stack.enter_context(
            owned(chain, c.llama_sampler_free, error=lambda: ModelLoadError("no sampler chain"))
        )
        grammar = None
        if options.grammar is not None:
            grammar = stack.enter_context(open_grammar(model, options.grammar))
        for link in (*_adjusting(c, model, options), *_choosing(c, options)):
            c.llama_sampler_chain_add(handle, link)  # the chain owns its links
        yield Sampler(handle, model, grammar)


def _adjusting(c: Any, model: TextModel, options: SamplerOptions) -> list[Any]:
    """Return the links that change logits before anything is left out."""
    links: list[Any] = []
    bias = (*options.logit_bias, *((token, -math.inf) for token in _suppressed(c, model)))
    if bias:
        biases = (c.llama_logit_bias * len(bias))(*bias)
        links.append(c.llama_sampler_init_logit_bias(model.n_vocab, len(biases), biases))
    if options.penalties is not None:
        links.append(
            c.llama_sampler_init_penalties(model.n_vocab, options.last_n, *options.penalties)
        )
    if options.has_dry:
        breakers = (ctypes.c_char_p * len(_DRY_BREAKERS))(*_DRY_BREAKERS)
        links.append(
            c.llama_sampler_init_dry(
                model.vocab,
                options.dry_multiplier,
                options.dry_base,
                options.dry_allowed_length,
                options.last_n,
                breakers,
                len(breakers),
            )
        )
    return links


def _suppressed(c: Any, model: TextModel) -> list[int]:
    """Return the tokens that the model's file takes out of every answer."""
    n_tokens = ctypes.c_int32()
    tokens = c.llama_vocab_get_suppress_tokens(model.vocab, ctypes.byref(n_tokens))
    return tokens[: n_tokens.value] if n_tokens.value else []


def _choosing(c: Any, options: SamplerOptions) -> list[Any]:
    if options.temperature == 0:
        return [c.llama_sampler_init_greedy()]
    return [
        c.llama_sampler_init_top_k(options.top_k),
        c.llama_sampler_init_top_p(options.top_p, 1),
        c.llama_sampler_init_min_p(options.min_p, 1),
        c.llama_sampler_init_temp(options.temperature),
        c.llama_sampler_init_dist(options.seed),
    ]
