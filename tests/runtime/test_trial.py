"""The model that `doctor` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.runtime import trial
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import open_vlm


def test_it_says_what_it_must_wherever_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    trial.write_tiny_model(path)
    for device in ("cpu", "auto"):
        with open_vlm(model=path, n_threads=1, device=device) as vlm:
            assert vlm.generate("a", params=SamplingParams(max_tokens=1)).text == "b"


def test_another_answer_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = trial._weights()  # pyright: ignore[reportPrivateUsage]
    weights["token_embd"] = -weights["token_embd"][[1, 0, 2]]
    monkeypatch.setattr(trial, "_weights", lambda: weights)
    fault = trial.try_device("cpu")
    assert fault is not None
    assert "wrong numbers" in fault.message


def test_a_device_that_is_not_there_is_a_fault() -> None:
    fault = trial.try_device("npu")
    assert fault is not None
    assert "'npu' is unknown" in fault.message
