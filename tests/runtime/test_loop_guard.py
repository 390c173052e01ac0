"""Cycles are seen, and nothing else is taken for one."""

from __future__ import annotations

import random

import pytest

from edgevlm.runtime.loop_guard import LoopGuard


def ends_at(tokens: list[int]) -> int | None:
    guard = LoopGuard()
    return next((n for n, token in enumerate(tokens, 1) if guard.sees_loop(token)), None)


@pytest.mark.parametrize(
    ("block", "expected"), [(1, 64), (2, 64), (7, 64), (25, 75), (100, 300), (512, 1536)]
)
def test_a_block_three_times_and_64_tokens(block: int, expected: int) -> None:
    tokens = list(range(block)) * 70
    assert ends_at(tokens) == expected
    assert ends_at([999, 998, *tokens]) == expected + 2


def test_blocks_beyond_the_limit_are_not_looked_for() -> None:
    assert ends_at(list(range(600)) * 4) is None


def test_a_cycle_that_is_broken_is_none() -> None:
    block = list(range(20))
    assert ends_at([*block, *block, *block[:-1], 99, *block, *block]) is None


def test_near_repetitions() -> None:
    rng = random.Random(1)
    tokens: list[int] = []
    for row in range(200):  # a list whose items differ in one token
        tokens += [1, 2, 3, 4, 100 + row, 5]
    assert ends_at(tokens) is None
    assert ends_at([rng.randrange(50) for _ in range(5000)]) is None
