"""GLM projectors: images stretched as transformers does, broken files refused by their headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, u32
from PIL import Image

from edgevlm.errors import ImageError, ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.stretch_canvas import StretchCanvas
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.goldens.files import drawn_image, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
GLM_OCR = StretchCanvas(cell=28, least=6272, most=4816896)
# (width, height) and what transformers 5.23's `smart_resize` makes of it, with two frames and the
# bounds of GLM-OCR; it gave the same as the canvas for 199,851 random sizes up to 2^13.
STRETCHED = {
    (640, 488): (644, 476),
    (2480, 3508): (1820, 2604),
    (10, 700): (28, 1960),
    (50, 50): (84, 84),
    (20, 30): (84, 112),
    (5000, 100): (5012, 112),
    (1000, 29): (1008, 28),
}


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "no tensor `v.patch_embd.bias`": mmproj(without("v.patch_embd.bias")),
    "no tensor `v.patch_embd.weight.1`": mmproj(without("v.patch_embd.weight.1")),
    "no tensor `mm.patch_merger.bias`": mmproj(without("mm.patch_merger.bias")),
    "no tensor `v.blk.1.ffn_gate.weight`": mmproj(without("v.blk.1.ffn_gate.weight")),
    "tensor `v.blk.2.attn_q_norm.weight`": mmproj(
        instead("v.blk.2.attn_q_norm.weight", "v.blk.2.ln1.weight")
    ),
    "tensor `mm.gate.weight`": mmproj(instead("mm.up.weight", "mm.down.weight")),
    "tensor `mm.down.weight`": mmproj(instead("mm.down.weight", "mm.model.fc.weight")),
    "tensor `v.post_ln.weight`": mmproj(instead("v.post_ln.weight", "mm.post_norm.weight")),
    "has a class token": mmproj(instead("v.class_embd", "v.post_ln.weight")),
    "with 48 positions": mmproj(instead("v.position_embd.weight", "v.blk.0.attn_out.weight")),
    "merges 3 x 3 patches": _number("spatial_merge_size", 3),
    "48 channels in 8 heads": _number("attention.head_count", 8),
    "scales images to 524289 to 524288 pixels": _number("image_min_pixels", 524289),
    "scales images to 2048 to 1073741824 pixels": _number("image_max_pixels", 1 << 30),
    "scales images to 0 to": _number("image_min_pixels", 0),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("glm_ocr", tmp_path_factory.mktemp("glm")), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


@pytest.mark.parametrize("sections", [None, [0, 8, 8, 0], [8, 0, 8, 0], [16]], ids=str)
def test_a_text_model_without_positions_of_images_is_refused(
    plan: ConversionPlan, tmp_path: Path, sections: list[int] | None
) -> None:
    values = None if sections is None else array("INT32", sections)
    changed = text(nothing, {"glm4.rope.dimension_sections": values})(plan)
    text_path, projector = written(changed, tmp_path)
    with pytest.raises(ModelLoadError, match="no positions of images") as caught:
        check_projector(projector, check_text_model(text_path)[0])
    assert caught.value.hint


def test_a_file_that_names_no_bounds_has_llama_cpps(plan: ConversionPlan, tmp_path: Path) -> None:
    keys = {f"{VISION}image_{name}_pixels": None for name in ("min", "max")}
    text_path, projector = written(mmproj(nothing, keys)(plan), tmp_path)
    span = check_projector(projector, check_text_model(text_path)[0])
    assert span.canvas == StretchCanvas(cell=16, least=8 * 256, most=4096 * 256)
    assert span.max_tokens == 4096


def test_sizes_are_transformers() -> None:
    assert {size: GLM_OCR.laid_out(*size) for size in STRETCHED} == STRETCHED
    assert GLM_OCR.max_tokens == 6144


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


def test_more_tokens_than_libmtmds_own_limit(plan: ConversionPlan, tmp_path: Path) -> None:
    # 65 x 64 tokens of 16 x 16 pixels; libmtmd alone would take 4096.
    larger = mmproj(nothing, {f"{VISION}image_max_pixels": u32(65 * 64 * 256)})(plan)
    text_path, projector = written(larger, tmp_path)
    with open_vlm(model=text_path, mmproj=projector, n_ctx=512, device="cpu") as vlm:
        assert vlm.count_visual_tokens(65 * 16, 64 * 16) == 65 * 64


def test_memory_grows_with_the_image_to_the_bound(plan: ConversionPlan, tmp_path: Path) -> None:
    text_file, projector = map(read_gguf, written(plan, tmp_path))

    def vision(side: int, n_ctx: int = 8192) -> int:
        sizes = [(side, side)]
        found = predict_footprint(text_file, projector, n_ctx=n_ctx, image_sizes=sizes)
        return found.vision_compute - 3 * side * side

    assert vision(256) < vision(512) < vision(720)
    # 524288 pixels at most, 724 a side.
    assert vision(1024) == pytest.approx(vision(2048))
    assert vision(720, n_ctx=256) == pytest.approx(vision(256), rel=0.01)
    assert replace(GLM_OCR, most=28 * 28).max_tokens == 1
