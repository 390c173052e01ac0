"""Qwen2.5-VL, whose tower attends within windows: headers, odd images, reuse, memory."""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.goldens.files import drawn_image, redraw
from tests.runtime.test_preflight import write

TEXT: dict[str, Any] = {
    "qwen2vl.block_count": 2,
    "qwen2vl.context_length": 64,
    "qwen2vl.embedding_length": 32,
    "qwen2vl.attention.head_count": 2,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "<|vision_start|>", "<|vision_end|>"],
}
PROJECTOR: dict[str, Any] = {
    "clip.has_vision_encoder": True,
    "clip.projector_type": "qwen2.5vl_merger",
    "clip.vision.projection_dim": 32,
    "clip.vision.image_size": 560,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 16,
    "clip.vision.block_count": 2,
    "clip.vision.attention.head_count": 2,
    "clip.vision.n_wa_pattern": 2,
}


def check(tmp_path: Path, change: dict[str, Any]) -> None:
    file, _ = check_text_model(write(tmp_path / "text.gguf", "qwen2vl", TEXT))
    check_projector(write(tmp_path / "mmproj.gguf", "clip", PROJECTOR | change), file)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"clip.vision.n_wa_pattern": 0},
        {"clip.vision.n_wa_pattern": 3},
        {"clip.vision.patch_size": 56},
        {"clip.vision.n_wa_pattern": 0, "clip.vision.patch_size": 57},
        {"clip.projector_type": "qwen2vl_merger", "clip.vision.patch_size": 57},
    ],
    ids=str,
)
def test_windows_that_llama_cpp_computes(tmp_path: Path, change: dict[str, Any]) -> None:
    check(tmp_path, change)


@pytest.mark.parametrize(
    "change", [{"clip.vision.n_wa_pattern": 1}, {"clip.vision.patch_size": 57}], ids=str
)
def test_windows_that_end_the_process_or_never_end(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(GGUFError, match=r"windows that llama\.cpp cannot compute") as caught:
        check(tmp_path, change)
    assert caught.value.hint


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The golden, converted: text model and projector."""
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    plan = plan_conversion(redraw("qwen2_5_vl", folder / "checkpoint"), outtype="f32")
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


def opened(paths: tuple[Path, Path], *, strict: bool = True) -> AbstractContextManager[VLM]:
    return open_vlm(model=paths[0], mmproj=paths[1], n_ctx=1536, device="cpu", strict=strict)


@pytest.mark.parametrize(
    ("width", "height", "n_tokens"),
    [(1, 1, 9), (28, 28, 9), (112, 112, 16), (113, 85, 12), (1400, 28, 50), (27, 700, 25)],
)
def test_images_of_odd_sizes(
    qwen: tuple[Path, Path], width: int, height: int, n_tokens: int
) -> None:
    with opened(qwen) as vlm:
        assert vlm.count_visual_tokens(width, height) == n_tokens
        image = np.full((height, width, 3), 99, dtype=np.uint8)
        assert np.isfinite(vlm.first_logits("What is this?", [image])).all()


def test_a_second_question_encodes_nothing_again(qwen: tuple[Path, Path]) -> None:
    image = drawn_image("140x252-1")
    params = SamplingParams(max_tokens=4)
    with opened(qwen) as vlm:
        first = vlm.generate("What is in the image?", [image], params=params)
        assert first.n_visual_tokens == 45
        messages = [
            Message(role="user", content=(image, "What is in the image?")),
            Message(role="assistant", content=(first.text,)),
            Message(role="user", content=("What is the color of the circle?",)),
        ]
        second = vlm.generate(messages, params=params)
        assert second.n_reused_tokens >= 45
        assert second.timings.image_encode_ms == (0.0,)
        cold = vlm.answer_logits(messages, answer=second.token_ids)
    assert second.token_ids
    assert cold.argmax(axis=1).tolist() == list(second.token_ids)


def test_the_mask_of_a_large_image_is_counted(
    qwen: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    side = 896
    with opened(qwen, strict=False) as vlm:
        assert vlm.count_visual_tokens(side, side) == 1024
        vlm.first_logits("What is this?", [np.zeros((side, side, 3), np.uint8)])
    found = re.findall(
        r"reserve_compute_meta: +CPU compute buffer size = +([\d.]+) MiB", caplog.text
    )
    compute = float(found[-1]) * 2**20
    text, mmproj = (read_gguf(path) for path in qwen)
    predicted = predict_footprint(text, mmproj, n_ctx=1536, image_sizes=[(side, side)])
    assert compute > 64 * 2**20
    assert compute <= predicted.vision_compute <= 1.7 * compute
