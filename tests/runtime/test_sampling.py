"""Sampling parameters that mean nothing are refused."""

from __future__ import annotations

from typing import Any

import pytest

from edgevlm.errors import PromptError
from edgevlm.runtime.sampling import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("seed", -1),
        ("seed", 1 << 32),
        ("max_tokens", 0),
    ],
)
def test_refused(name: str, value: float) -> None:
    values: dict[str, Any] = {name: value}
    with pytest.raises(PromptError, match=name) as caught:
        SamplingParams(**values)
    assert caught.value.hint.startswith("use ")


def test_greedy_by_default() -> None:
    assert SamplingParams().temperature == 0
