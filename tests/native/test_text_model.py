"""Text model and context: tokens in, logits out; refusals with llama.cpp's own reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.native.devices import devices
from edgevlm.native.text_context import ContextOptions, open_context
from edgevlm.native.text_model import ModelOptions, TextModel, open_text_model

# F16 weights: another batch size takes another kernel, which rounds otherwise.
ATOL = 0.02


def options(*, n_ctx: int = 256, n_batch: int = 512, n_outputs: int = 16) -> ContextOptions:
    return ContextOptions(
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_outputs=n_outputs,
        n_threads=1,
        kv_type="F32",
        flash_attention="off",
    )


def test_batch_size_does_not_change_the_logits(text_model: TextModel) -> None:
    tokens = text_model.tokenize(
        "what color is the large circle in the image?" * 2, parse_special=False
    )
    found: list[np.ndarray] = []
    for n_batch in (512, 7):
        with open_context(text_model, options(n_batch=n_batch)) as context:
            context.decode_tokens(tokens, n_logits=5)
            assert context.n_used == context.position == len(tokens)
            found.append(context.logits(5))
    assert found[0].shape == (5, text_model.n_vocab)
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(found[0], found[1], atol=ATOL)


def test_logits_of_one_by_one_equal_those_of_all_at_once(text_model: TextModel) -> None:
    tokens = text_model.tokenize("how many shapes?", parse_special=False)
    with open_context(text_model, options()) as context:
        context.decode_tokens(tokens, n_logits=len(tokens))
        at_once = context.logits(len(tokens))
        context.clear()
        for row, token in zip(at_once, tokens, strict=True):
            context.decode_tokens([token], n_logits=1)
            np.testing.assert_allclose(context.logits(1)[0], row, atol=ATOL)


def test_more_tokens_than_the_context_holds(text_model: TextModel) -> None:
    with (
        open_context(text_model, options(n_ctx=16)) as context,
        pytest.raises(ModelLoadError, match="failed to decode"),
    ):
        context.decode_tokens([10] * 600)


def test_logits_that_were_not_kept(text_model: TextModel) -> None:
    with open_context(text_model, options(n_outputs=2)) as context:
        with pytest.raises(ValueError, match="2 can be kept"):
            context.decode_tokens([10, 11, 12], n_logits=3)
        context.decode_tokens([10, 11, 12], n_logits=1)
        with pytest.raises(ValueError, match="1 were kept"):
            context.logits(2)


def test_special_tokens_are_parsed_only_when_asked(text_model: TextModel) -> None:
    assert text_model.tokenize("<|im_end|>", parse_special=True) == [2]
    plain = text_model.tokenize("<|im_end|>", parse_special=False)
    assert 2 not in plain
    assert b"".join(text_model.piece(token) for token in plain) == b"<|im_end|>"
    assert text_model.piece(2) == b""
    assert text_model.piece(2, special=True) == b"<|im_end|>"
    assert text_model.is_end(2)
    assert text_model.is_control(2)
    assert not text_model.is_control(plain[0])


def test_text_that_is_not_utf8_clean(text_model: TextModel) -> None:
    tokens = text_model.tokenize("a\0b\ud800c", parse_special=False)
    assert b"".join(text_model.piece(token) for token in tokens) == b"a\0b?c"


@pytest.mark.parametrize("n_bytes", [100, 100_000])
def test_truncated_file(shapes_dir: Path, tmp_path: Path, n_bytes: int) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((shapes_dir / "shapes-F16.gguf").read_bytes()[:n_bytes])
    with (
        pytest.raises(ModelLoadError, match=r"cannot load .*broken\.gguf`: .+"),
        open_text_model(broken, ModelOptions()),
    ):
        pytest.fail("a truncated file was loaded")


def test_context_that_llama_cpp_refuses(text_model: TextModel) -> None:
    refused: Any = "Q8_0"  # a quantized V cache needs flash attention
    asked = ContextOptions(n_ctx=256, n_threads=1, kv_type=refused, flash_attention="off")
    with (
        pytest.raises(ModelLoadError, match=r"context of 256 tokens: .*V cache") as caught,
        open_context(text_model, asked),
    ):
        pytest.fail("the context was made")
    assert "--ctx" in caught.value.hint


def test_devices() -> None:
    assert any(device.kind == "cpu" for device in devices())


@pytest.mark.parametrize("device", ["toaster", "CUDA0"])
def test_unknown_device(shapes_dir: Path, device: str) -> None:
    with (
        pytest.raises(ModelLoadError, match="unknown") as caught,
        open_text_model(shapes_dir / "shapes-F16.gguf", ModelOptions(device=device)),
    ):
        pytest.fail("an unknown device was taken")
    assert "vulkan" in caught.value.hint


def test_cpu_can_be_asked_for(shapes_dir: Path) -> None:
    path = shapes_dir / "shapes-F16.gguf"
    with open_text_model(path, ModelOptions(device="cpu", n_gpu_layers=0)) as model:
        assert model.n_vocab == 414
