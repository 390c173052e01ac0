"""Qwen2-VL's norms: what the installed llama.cpp makes of their epsilon, and who is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import plan_conversion

from edgevlm.cli.app import main
from edgevlm.runtime.norm_epsilon import is_heard, reads_norm_epsilon
from tests.goldens.files import redraw


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw("qwen2_vl", tmp_path_factory.mktemp("golden") / "checkpoint")


def test_an_epsilon_that_is_read_is_told_from_one_that_is_not() -> None:
    # The same model under the name of an architecture that reads it.
    assert reads_norm_epsilon("qwen2")
    # When this fails, llama.cpp is mended: qwen2_vl_epsilon can do without `emulate`.
    assert not reads_norm_epsilon("qwen2vl")
    assert is_heard(np.array([1e-3, 0], dtype=np.float32))
    assert not is_heard(np.array([5.6, 0], dtype=np.float32))


@pytest.mark.parametrize(("mended", "n_losses"), [(False, 1), (True, 0)])
def test_the_loss_is_said_unless_llama_cpp_is_mended(
    checkpoint: Path, mended: bool, n_losses: int
) -> None:
    asked: list[str] = []

    def reads(architecture: str) -> bool:
        asked.append(architecture)
        return mended

    plan = plan_conversion(checkpoint, reads_norm_epsilon=reads)
    assert asked == ["qwen2vl"]
    assert len(plan.losses) == n_losses
    assert all("the epsilon 1e-06" in loss for loss in plan.losses)


def test_the_loss_stands_in_output_and_manifest(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    out = "".join(capsys.readouterr())
    assert "leaves the epsilon 1e-06 out" in " ".join(out.split())
    manifest = json.loads((tmp_path / "out" / "edgevlm.json").read_text(encoding="utf-8"))
    (loss,) = manifest["losses"]
    assert "epsilon 1e-06" in loss
