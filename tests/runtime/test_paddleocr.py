"""PaddleOCR-VL's projector: sizes as transformers', positions unsmoothed, broken files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import u32
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError, ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.native import position_scale
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.stretch_canvas import StretchCanvas
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
PUBLISHED = StretchCanvas(cell=28, least=147384, most=2822400, rounds=True)
# (width, height) and what transformers 5.23's `smart_resize` makes of it; it gave the same as the
# canvas for 163,701 random sizes up to 2^13.
STRETCHED = {
    (640, 488): (644, 476),
    (2480, 3508): (1400, 1988),
    (10, 700): (56, 3220),
    (50, 50): (392, 392),
    (20, 30): (336, 476),
    (5000, 100): (5012, 112),
    (1000, 29): (2268, 84),
    (40, 1200): (84, 2128),
}


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "no tensor `v.patch_embd.bias`": mmproj(without("v.patch_embd.bias")),
    "no tensor `mm.input_norm.bias`": mmproj(without("mm.input_norm.bias")),
    "no tensor `v.blk.1.attn_k.weight`": mmproj(without("v.blk.1.attn_k.weight")),
    "tensor `mm.1.weight`": mmproj(instead("mm.1.weight", "mm.2.weight")),
    "tensor `v.blk.2.ffn_down.weight`": mmproj(
        instead("v.blk.2.ffn_down.weight", "v.blk.2.ffn_up.weight")
    ),
    "no tensor `v.position_embd.weight`": mmproj(without("v.position_embd.weight")),
    "with 48 positions": mmproj(instead("v.position_embd.weight", "v.blk.0.attn_out.weight")),
    "48 channels in 8 heads": _number("attention.head_count", 8),
    "scales images to 524289 to 262144 pixels": _number("image_min_pixels", 524289),
    "scales images to 1024 to 1073741824 pixels": _number("image_max_pixels", 1 << 30),
    "scales images to 0 to": mmproj(nothing, {f"{VISION}image_min_pixels": None}),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("paddleocr_vl", tmp_path_factory.mktemp("ernie")), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


def test_sizes_are_transformers() -> None:
    assert {size: PUBLISHED.laid_out(*size) for size in STRETCHED} == STRETCHED
    assert PUBLISHED.max_tokens == 3600


def test_an_image_is_stretched_and_nothing_is_put_beside_it(
    plan: ConversionPlan, tmp_path: Path
) -> None:
    text_path, projector = written(plan, tmp_path)
    photo = drawn_image("60x90-1")
    by_hand = np.asarray(Image.fromarray(photo).resize((96, 64), Image.Resampling.BICUBIC))
    with open_vlm(model=text_path, mmproj=projector, n_ctx=512, device="cpu", strict=True) as vlm:
        assert vlm.count_visual_tokens(90, 60) == 6 * 4
        ours = vlm.first_logits("What is this?", [photo])
        assert (ours == vlm.first_logits("What is this?", [by_hand])).all()
        with pytest.raises(ImageError, match="200"):
            vlm.first_logits("What is this?", [np.zeros((2, 500, 3), np.uint8)])


def test_positions_are_not_smoothed(
    plan: ConversionPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_path, projector = written(plan, tmp_path)
    # The table has five rows and columns. The line has two rows; the square needs no scaling down.
    line, square = drawn_image("16x96-1"), drawn_image("64x64-1")

    def answers() -> list[NDArray[np.float32]]:
        with open_vlm(
            model=text_path, mmproj=projector, n_ctx=512, device="cpu", strict=True
        ) as vlm:
            return [vlm.first_logits("What is this?", [image]) for image in (line, square)]

    ours = answers()
    monkeypatch.setattr(position_scale, "_ANTIALIAS", 0)
    theirs = answers()
    far, near = (float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    assert far > 50 * near


def test_a_ggml_whose_nodes_cannot_be_changed_is_refused(
    plan: ConversionPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_path, projector = written(plan, tmp_path)
    monkeypatch.setattr(position_scale, "layout_fault", lambda: "the fields have moved")
    with (
        pytest.raises(ModelLoadError, match="the fields have moved"),
        open_vlm(model=text_path, mmproj=projector, n_ctx=512, device="cpu"),
    ):
        pass


def test_memory_grows_with_the_image_to_the_bound(plan: ConversionPlan, tmp_path: Path) -> None:
    text_file, projector = map(read_gguf, written(plan, tmp_path))

    def vision(side: int) -> int:
        found = predict_footprint(text_file, projector, n_ctx=8192, image_sizes=[(side, side)])
        return found.vision_compute - 3 * side * side

    assert vision(128) < vision(256) < vision(512)
    # 262144 pixels at most, 512 a side.
    assert vision(512) == pytest.approx(vision(2048))
