"""Images of the Qwen-VL families: stretched as transformers does, within the file's bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import u32
from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.stretch_canvas import StretchCanvas
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, mmproj, nothing
from tests.goldens.files import drawn_image, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
# One or more of each type of projector.
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_5", "cosmos3_omni")
QWEN3_VL = StretchCanvas(cell=32, least=65536, most=16777216, widens=False)
LLAMA_CPPS = StretchCanvas(cell=28, least=8 * 28**2, most=4096 * 28**2, widens=False)
# (width, height) and what transformers 5.23's `smart_resize` makes of it. Over 163,818 random sizes
# up to 2^13, with these bounds and those of the other cell, it gave the same as the canvas.
STRETCHED = {
    QWEN3_VL: {
        (640, 488): (640, 480),
        (2480, 3508): (2496, 3520),
        (10, 700): (32, 2144),
        (50, 50): (256, 256),
        (5000, 100): (4992, 96),
        (1000, 29): (1504, 64),
    },
    LLAMA_CPPS: {
        (640, 488): (644, 476),
        (2480, 3508): (1484, 2128),
        (10, 700): (28, 672),
        (16, 16): (84, 84),
        (5000, 100): (5012, 112),
        (1000, 29): (1008, 28),
    },
}


def _bounds(least: int, most: int) -> Mutation:
    values = {"min": least, "max": most}
    return mmproj(nothing, {f"{VISION}image_{key}_pixels": u32(n) for key, n in values.items()})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("qwen3_vl", tmp_path_factory.mktemp("qwen3")), outtype="f32")


@pytest.mark.parametrize("canvas", STRETCHED, ids=lambda canvas: str(canvas.cell))
def test_sizes_are_transformers(canvas: StretchCanvas) -> None:
    sizes = STRETCHED[canvas]
    assert {size: canvas.laid_out(*size) for size in sizes} == sizes


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_stretched_and_nothing_is_put_beside_it(name: str, tmp_path: Path) -> None:
    plan = plan_conversion(redraw(name, tmp_path / "checkpoint"), outtype="f32")
    text_path, projector = written(plan, tmp_path)
    photo = drawn_image("60x90-1")
    span = check_projector(projector, check_text_model(text_path)[0])
    assert isinstance(span.canvas, StretchCanvas)
    cell = span.canvas.cell
    size = span.canvas.laid_out(90, 60)
    assert size != (90, 60)
    by_hand = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))
    with open_vlm(model=text_path, mmproj=projector, n_ctx=512, device="cpu", strict=True) as vlm:
        assert vlm.count_visual_tokens(90, 60) == size[0] * size[1] // cell**2
        seen = vlm.encode(photo).graph_input
        assert seen is not None
        assert [tile.shape for tile in seen.tiles] == [(3, *size[::-1])]
        ours = vlm.first_logits("What is this?", [photo])
        assert (ours == vlm.first_logits("What is this?", [by_hand])).all()
        with pytest.raises(ImageError, match="200"):
            vlm.first_logits("What is this?", [np.zeros((2, 500, 3), np.uint8)])


def test_a_file_that_names_no_bounds_has_llama_cpps(plan: ConversionPlan, tmp_path: Path) -> None:
    text_path, projector = written(plan, tmp_path)
    span = check_projector(projector, check_text_model(text_path)[0])
    assert isinstance(span.canvas, StretchCanvas)
    cell = span.canvas.cell
    wanted = StretchCanvas(cell=cell, least=8 * cell**2, most=4096 * cell**2, widens=False)
    assert (span.canvas, span.max_tokens, span.max_aspect) == (wanted, 4096, 200)


def test_bounds_of_the_file_count(plan: ConversionPlan, tmp_path: Path) -> None:
    text_path, projector = written(plan, tmp_path)
    span = check_projector(projector, check_text_model(text_path)[0])
    assert isinstance(span.canvas, StretchCanvas)
    cell = span.canvas.cell
    area = cell**2
    text_path, projector = written(_bounds(2 * area, 4160 * area)(plan), tmp_path)
    with open_vlm(model=text_path, mmproj=projector, n_ctx=512, device="cpu") as vlm:
        # libmtmd alone makes 4096 of the first and 8 of the second.
        assert vlm.count_visual_tokens(65 * cell, 64 * cell) == 4160
        assert vlm.count_visual_tokens(2 * cell, cell) == 2


@pytest.mark.parametrize(
    ("least", "most"), [(0, 1 << 20), ((1 << 20) + 1, 1 << 20), (1, 1 << 31), (1, 1)], ids=str
)
def test_bounds_that_no_image_can_keep(
    plan: ConversionPlan, tmp_path: Path, least: int, most: int
) -> None:
    check_refused(_bounds(least, most)(plan), tmp_path, f"scales images to {least} to {most}")


def test_memory_grows_with_the_image_to_the_bound(plan: ConversionPlan, tmp_path: Path) -> None:
    text_path, projector = written(_bounds(1024, 262144)(plan), tmp_path)
    text_file, projector_file = read_gguf(text_path), read_gguf(projector)

    def vision(side: int) -> int:
        sizes = [(side, side)]
        found = predict_footprint(text_file, projector_file, n_ctx=8192, image_sizes=sizes)
        return found.vision_compute - 3 * side * side

    assert vision(128) < vision(256) < vision(512)
    assert vision(512) == pytest.approx(vision(2048))
