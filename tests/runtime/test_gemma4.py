"""Gemma 4 projectors: images stretched as transformers does, broken files refused by headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.gemma4_canvas import Gemma4Canvas
from edgevlm.runtime.preflight import check_text_model
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.goldens.files import drawn_image, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
PUBLISHED = Gemma4Canvas(cell=48, max_tokens=280)
# (width, height) and what transformers 5.23's `get_aspect_ratio_preserving_size` makes of it.
STRETCHED = {
    (640, 488): (912, 672),
    (100, 100): (768, 768),
    (4000, 3000): (912, 672),
    (30000, 60): (13440, 48),
    (50, 9000): (48, 10752),
}


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "no tensor `v.patch_embd.weight`": mmproj(without("v.patch_embd.weight")),
    "no tensor `v.blk.1.attn_q_norm.weight`": mmproj(without("v.blk.1.attn_q_norm.weight")),
    "tensor `v.blk.0.ffn_down.weight`": mmproj(
        instead("v.blk.0.ffn_down.weight", "v.blk.0.ffn_up.weight")
    ),
    "tensor `v.std_bias`": mmproj(instead("v.std_bias", "v.blk.0.attn_q_norm.weight")),
    "48 channels in 24 heads": _number("attention.head_count", 24),
    "scales images to 9000 pixels": _number("image_max_pixels", 9000),
    "scales images to 1073741824 pixels": _number("image_max_pixels", 1 << 30),
    "in tokens of 0 x 0": _number("projector.scale_factor", 0),
    "210 positions, and images of up to 420": _number("image_max_pixels", 140 * 144),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("gemma4", tmp_path_factory.mktemp("gemma4")), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


def test_a_text_model_of_shared_keys_alone_is_refused(plan: ConversionPlan, tmp_path: Path) -> None:
    broken = text(nothing, {"gemma4.attention.shared_kv_layers": u32(5)})(plan)
    with pytest.raises(GGUFError, match="shares keys in 5 of 6 layers"):
        check_text_model(written(broken, tmp_path)[0])


@pytest.mark.parametrize("size", STRETCHED)
def test_images_are_stretched_as_transformers_does(size: tuple[int, int]) -> None:
    assert PUBLISHED.laid_out(*size) == STRETCHED[size]


@pytest.mark.parametrize(
    "name", ["84x120-1", "40x40-1", "400x90-2", "2x300-3"], ids=["as it is", "up", "down", "row"]
)
def test_the_runtime_counts_what_the_canvas_says(
    plan: ConversionPlan, tmp_path: Path, name: str
) -> None:
    model, projector = written(plan, tmp_path)
    image = drawn_image(name)
    height, width, _ = image.shape
    wide, high = Gemma4Canvas(cell=12, max_tokens=70).laid_out(width, height)
    with open_vlm(model=model, mmproj=projector, n_ctx=512, device="cpu") as vlm:
        assert vlm.count_visual_tokens(width, height) == wide * high // 144
        (found,) = vlm.encode(image).tiles
    assert len(found) == wide * high // 144
    assert np.isfinite(found).all()


def test_the_memory_of_an_image_is_that_of_the_budget(plan: ConversionPlan, tmp_path: Path) -> None:
    files = [read_gguf(path) for path in written(plan, tmp_path)]
    small, large = (
        predict_footprint(*files, n_ctx=512, image_sizes=[size]).vision_compute
        for size in ((20, 20), (120, 84))
    )
    assert small == pytest.approx(large, rel=0.2)
