"""Types of the KV cache and flash attention, on the built-in model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.native.text_context import KVType
from edgevlm.runtime.vlm import open_vlm


def logits(model: Path, kv_type: KVType) -> np.ndarray:
    with open_vlm(
        model=model, kv_type=kv_type, flash_attention="on", n_ctx=128, n_threads=1
    ) as vlm:
        return vlm.first_logits("How many red circles are there?")


def test_a_q8_0_cache_rounds_and_stays_close(shapes_dir: Path) -> None:
    model = shapes_dir / "shapes-F16.gguf"
    exact, rounded = logits(model, "F32"), logits(model, "Q8_0")
    assert not np.array_equal(exact, rounded), "the cache type was not used"
    assert np.abs(exact - rounded).max() < 1.0


def test_a_q8_0_cache_without_flash_attention_is_refused(shapes_dir: Path) -> None:
    with (
        pytest.raises(ModelLoadError, match="needs flash attention") as error,
        open_vlm(
            model=shapes_dir / "shapes-F16.gguf",
            kv_type="Q8_0",
            flash_attention="off",
            n_threads=1,
        ),
    ):
        pass
    assert "--kv-type f16" in error.value.hint
