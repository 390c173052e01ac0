"""A guard against answers that repeat themselves and nothing else.

Small models at temperature 0 fall into cycles; each turn costs seconds on a small machine. A cycle
is a block of up to 512 tokens that stands there three times or more, one right after the other,
64 tokens together at least: one token 64 times, or a sentence of 25 tokens three times. Honest
answers rarely hold that (a long dashed line may), so it can be switched off.
"""

from __future__ import annotations

from collections import deque

MIN_REPEATS = 3
MIN_TOKENS = 64
MAX_BLOCK = 512


class LoopGuard:
    """Watches the tokens of one answer."""

    def __init__(self) -> None:
        self._n_tokens = 0
        self._places: dict[int, deque[int]] = {}
        # By length of block: how many tokens in a row equal the one a block before.
        self._runs: dict[int, int] = {}

    def sees_loop(self, token: int) -> bool:
        """Take the next token; return whether the answer has begun to cycle."""
        at = self._n_tokens
        self._n_tokens += 1
        places = self._places.setdefault(token, deque())
        while places and at - places[0] > MAX_BLOCK:
            places.popleft()
        self._runs = {at - place: self._runs.get(at - place, 0) + 1 for place in places}
        places.append(at)
        return any(
            run + block >= max(MIN_TOKENS, MIN_REPEATS * block) for block, run in self._runs.items()
        )
