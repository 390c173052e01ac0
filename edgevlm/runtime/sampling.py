"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is sampled; the defaults give the same text at every run.

    Attributes:
        temperature: 0 takes the most likely token, always.
        top_k: most candidates; 0 for all. Without effect at temperature 0, like the next three.
        top_p: cumulative probability that is kept; 1 for all.
        min_p: probability relative to the best candidate; 0 for all.
        seed: of the draw, 0 to 2^32 - 1.
        max_tokens: most tokens of an answer; None for what the context holds.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0
    max_tokens: int | None = 512

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, good, want in (
            ("temperature", 0 <= self.temperature <= 100, "0 to 100"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("seed", 0 <= self.seed < 1 << 32, "0 to 4294967295"),
            ("max_tokens", self.max_tokens is None or self.max_tokens > 0, "1 or more"),
        ):
            if not good:
                value = getattr(self, name)
                raise PromptError(f"{name} cannot be {value}", hint=f"use {want}")
