"""Nothing that waits, and weights."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for answers; none of them pass."""
    seconds: list[float] = []
    monkeypatch.setattr("edgevlm.hub.access.sleep", seconds.append)
    return seconds


@pytest.fixture
def weights() -> bytes:
    """Weights large enough to be cut."""
    return os.urandom(400_000)
