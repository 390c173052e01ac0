"""How the next token is chosen, and what ends an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.errors import PromptError

_MAX_STOP_STRINGS = 64
_MAX_STOP_LENGTH = 1000


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is sampled; the defaults give the same text at every run.

    Made of JSON's own types, so that `SamplingParams(**json.loads(json.dumps(asdict(params))))`
    gives it back: it crosses to the worker process.

    Attributes:
        temperature: 0 takes the most likely token, always.
        top_k: most candidates; 0 for all. Without effect at temperature 0, like the next two.
        top_p: cumulative probability that is kept; 1 for all.
        min_p: probability relative to the best candidate; 0 for all.
        repeat_penalty: logits of recent tokens are divided (negative: multiplied) by it; 1 for off.
        repeat_last_n: tokens that count as recent, for all penalties and DRY; 0 for none, -1 for
            as many as the context holds. The prompt's text counts, as in llama.cpp.
        frequency_penalty: taken from a recent token's logit as often as it occurred.
        presence_penalty: taken from a recent token's logit once.
        dry_multiplier: strength of DRY ("don't repeat yourself"); 0 for off.
        dry_base: DRY's penalty grows by this for each token that would lengthen a repetition.
        dry_allowed_length: repetitions up to this many tokens cost nothing.
        seed: of the draw, 0 to 2^32 - 1.
        max_tokens: most tokens of an answer; None for what the context holds.
        max_seconds: an answer ends after this many seconds from the request; None for no limit.
        stop: texts that end an answer; they are not part of it.
        logit_bias: (token id, what is added to its logit); minus infinity is written as -1e30.
        grammar: GBNF text that the answer must follow; rule "root" is where it starts.
        json_schema: JSON schema, as text, that the answer must follow; not with `grammar`.
        loop_guard: end an answer that repeats itself and nothing else.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    seed: int = 0
    max_tokens: int | None = 512
    max_seconds: float | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    json_schema: str | None = None
    loop_guard: bool = True

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; JSON's lists become tuples again."""
        object.__setattr__(self, "stop", tuple(self.stop))
        bias = tuple((token, value) for token, value in self.logit_bias)
        object.__setattr__(self, "logit_bias", bias)
        for name, good, want in (*self._checks_of_choice(), *self._checks_of_ends()):
            if not good:
                value = getattr(self, name)
                raise PromptError(f"{name} cannot be {value!r}", hint=f"use {want}")
        if self.grammar is not None and self.json_schema is not None:
            raise PromptError(
                "a grammar and a JSON schema are given", hint="use one: both say what may be said"
            )

    def _checks_of_choice(self) -> tuple[tuple[str, bool, str], ...]:
        return (
            ("temperature", 0 <= self.temperature <= 100, "0 to 100"),
            ("top_k", 0 <= self.top_k < 1 << 31, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repeat_penalty", 0 < self.repeat_penalty <= 100, "above 0, up to 100"),
            ("repeat_last_n", -1 <= self.repeat_last_n <= 1 << 20, "-1 to 1048576"),
            ("frequency_penalty", abs(self.frequency_penalty) <= 100, "-100 to 100"),
            ("presence_penalty", abs(self.presence_penalty) <= 100, "-100 to 100"),
            ("dry_multiplier", 0 <= self.dry_multiplier <= 100, "0 to 100"),
            ("dry_base", 1 <= self.dry_base <= 100, "1 to 100"),
            ("dry_allowed_length", 1 <= self.dry_allowed_length <= 1 << 20, "1 or more"),
            ("seed", 0 <= self.seed < 1 << 32, "0 to 4294967295"),
            (
                "logit_bias",
                all(
                    token >= 0 and math.isfinite(value) and abs(value) <= 1e30
                    for token, value in self.logit_bias
                ),
                "token ids from 0, and numbers from -1e30 to 1e30",
            ),
        )

    def _checks_of_ends(self) -> tuple[tuple[str, bool, str], ...]:
        return (
            ("max_tokens", self.max_tokens is None or self.max_tokens > 0, "1 or more"),
            (
                "max_seconds",
                self.max_seconds is None or 0 < self.max_seconds < math.inf,
                "more than 0",
            ),
            (
                "stop",
                len(self.stop) <= _MAX_STOP_STRINGS
                and all(0 < len(text) <= _MAX_STOP_LENGTH for text in self.stop),
                f"up to {_MAX_STOP_STRINGS} texts of 1 to {_MAX_STOP_LENGTH} characters",
            ),
        )
