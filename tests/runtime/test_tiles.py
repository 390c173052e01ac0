"""Images cut into tiles (Idefics3, SmolVLM): headers, thin images, reuse, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion

from edgevlm.errors import GGUFError, ImageError, ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.goldens.files import drawn_image, redraw
from tests.runtime.test_preflight import write

TEXT: dict[str, Any] = {
    "llama.block_count": 2,
    "llama.context_length": 2048,
    "llama.embedding_length": 32,
    "llama.attention.head_count": 2,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "\u010a\u010a", "<fake_token_around_image>"],
}
PROJECTOR: dict[str, Any] = {
    "clip.has_vision_encoder": True,
    "clip.projector_type": "idefics3",
    "clip.vision.projection_dim": 32,
    "clip.vision.image_size": 64,
    "clip.vision.patch_size": 10,
    "clip.vision.embedding_length": 16,
    "clip.vision.block_count": 2,
    "clip.vision.attention.head_count": 2,
    "clip.vision.projector.scale_factor": 3,
    "clip.vision.preproc_image_size": 256,
}


def checked(tmp_path: Path, *, text: dict[str, Any], projector: dict[str, Any]) -> int:
    """Return how thin an image may be."""
    file, _ = check_text_model(write(tmp_path / "text.gguf", "llama", TEXT | text))
    changed = {key: value for key, value in (PROJECTOR | projector).items() if value is not None}
    return check_projector(write(tmp_path / "mmproj.gguf", "clip", changed), file).max_aspect


def test_a_pair_that_fits(tmp_path: Path) -> None:
    assert checked(tmp_path, text={}, projector={}) == 256
    # Files older than the key: libmtmd cuts images as they are.
    assert checked(tmp_path, text={}, projector={"clip.vision.preproc_image_size": None}) == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_vocabulary_without_a_token_that_libmtmd_looks_up(tmp_path: Path, number: int) -> None:
    tokens = [*TEXT["tokenizer.ggml.tokens"]]
    tokens[number] = "b"
    with pytest.raises(ModelLoadError, match="lacks"):
        checked(tmp_path, text={"tokenizer.ggml.tokens": tokens}, projector={})


@pytest.mark.parametrize(
    "change",
    [
        {"clip.vision.projector.scale_factor": None},
        {"clip.vision.projector.scale_factor": 1},
        {"clip.vision.projector.scale_factor": 4},
        {"clip.vision.preproc_image_size": 0},
        {"clip.vision.preproc_image_size": 1 << 30},
    ],
    ids=str,
)
def test_projectors_that_would_end_the_process(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(GGUFError) as caught:
        checked(tmp_path, text={}, projector=change)
    assert caught.value.hint


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SmolVLM's golden, converted: text model and projector; tiles of 48, longest edge 96."""
    folder = tmp_path_factory.mktemp("smolvlm")
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    plan = plan_conversion(redraw("smolvlm", folder / "checkpoint"))
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


def opened(paths: tuple[Path, Path]) -> AbstractContextManager[VLM]:
    return open_vlm(model=paths[0], mmproj=paths[1], n_ctx=512, device="cpu", strict=True)


def test_an_image_too_thin_to_be_scaled(smolvlm: tuple[Path, Path]) -> None:
    with opened(smolvlm) as vlm:
        assert vlm.count_visual_tokens(190, 2) == 3 * 9
        logits = vlm.first_logits("What is this?", [np.zeros((2, 190, 3), np.uint8)])
        assert np.isfinite(logits).all()
        for width, height in ((192, 2), (1, 96), (5000, 1)):
            with pytest.raises(ImageError, match=f"{width}x{height} is too thin"):
                vlm.count_visual_tokens(width, height)
        with pytest.raises(ImageError, match="too thin"):
            vlm.first_logits("What is this?", [np.zeros((1, 300, 3), np.uint8)])


def test_a_second_question_encodes_no_tile_again(smolvlm: tuple[Path, Path]) -> None:
    image = drawn_image("96x96-1")
    params = SamplingParams(max_tokens=4)
    with opened(smolvlm) as vlm:
        first = vlm.generate("What is in the image?", [image], params=params)
        assert first.n_visual_tokens == 5 * 9
        assert first.n_reused_tokens == 0
        messages = [
            Message(role="user", content=(image, "What is in the image?")),
            Message(role="assistant", content=(first.text,)),
            Message(role="user", content=("And its color?",)),
        ]
        second = vlm.generate(messages, params=params)
        assert second.n_reused_tokens >= 5 * 9
        assert second.timings.image_encode_ms == (0.0,)
        cold = vlm.answer_logits(messages, answer=second.token_ids)
    assert cold.argmax(axis=1).tolist() == list(second.token_ids)


def test_tiles_cost_memory(smolvlm: tuple[Path, Path]) -> None:
    text, mmproj = (read_gguf(path) for path in smolvlm)

    def vision(width: int, height: int, n_ctx: int = 512) -> int:
        sizes = [(width, height)]
        return predict_footprint(text, mmproj, n_ctx=n_ctx, image_sizes=sizes).vision_compute

    # An image costs by the tiles that it becomes, not by its size; and by itself.
    tile = vision(96, 96) - vision(96, 48) - 3 * 96 * 48
    assert tile > 0
    assert vision(192, 96) - vision(96, 48) == 3 * (192 * 96 - 96 * 48)
    # Two tiles and the overview fill this context.
    assert vision(96, 96, 32) == vision(96, 48, 32) + 3 * 96 * 48
