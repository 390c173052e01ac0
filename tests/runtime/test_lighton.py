"""LightOnOCR's projector: no tokens around images, sizes, broken files refused by their headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import u32
from numpy.typing import NDArray
from PIL import Image

from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import ImageChunk, TextChunk
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.layout import without_frames
from edgevlm.runtime.longest_canvas import LongestCanvas
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
PUBLISHED = LongestCanvas(cell=28, longest=1540)


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "no tensor `mm.input_norm.weight`": mmproj(without("mm.input_norm.weight")),
    "tensor `mm.2.weight`": mmproj(instead("mm.2.weight", "mm.1.weight")),
    "tensor `mm.patch_merger.weight`": mmproj(instead("mm.patch_merger.weight", "mm.1.weight")),
    "scales images to 0 pixels": _number("preproc_image_size", 0),
    "scales images to 8 pixels": _number("image_size", 8),
    "scales images to 2048 pixels": _number("preproc_image_size", 2048),
    "scales images to 65536 pixels": _number("preproc_image_size", 1 << 16),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("lighton_ocr", tmp_path_factory.mktemp("ocr")), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


def test_a_page_has_the_size_that_transformers_gives_it() -> None:
    # `get_resize_output_image_size` of transformers 5.23, with cells of 28 pixels.
    assert PUBLISHED.laid_out(2480, 3508) == (1092, 1540)
    assert PUBLISHED.laid_out(1540, 1000) == (1540, 1008)
    assert PUBLISHED.laid_out(4000, 10) == (1540, 28)
    # Smaller ones are not left small: libmtmd would not have it.
    assert PUBLISHED.laid_out(770, 500) == (1540, 1008)


def test_tokens_around_images_are_taken_out() -> None:
    none: NDArray[np.int32] = np.zeros((1, 2), np.int32)
    image = ImageChunk(n_tokens=2, n_positions_used=2, positions=none, causal=True)
    begin, end = 7, 8
    texts = [TextChunk(tokens=tokens) for tokens in ((1, begin), (end, begin), (end, 2, 3))]
    found = without_frames([texts[0], image, texts[1], image, texts[2]], 1, 1)
    assert found == [TextChunk(tokens=(1,)), image, image, TextChunk(tokens=(2, 3))]


def test_images_are_stretched_and_stand_alone(plan: ConversionPlan, tmp_path: Path) -> None:
    text_path, projector = written(plan, tmp_path)
    photo = drawn_image("60x90-1")
    by_hand = np.asarray(Image.fromarray(photo).resize((64, 48), Image.Resampling.BICUBIC))
    with open_vlm(model=text_path, mmproj=projector, n_ctx=512, device="cpu", strict=True) as vlm:
        assert vlm.count_visual_tokens(90, 60) == 4 * 3
        ours = vlm.first_logits("What is this?", [photo])
        assert (ours == vlm.first_logits("What is this?", [by_hand])).all()


def test_memory_is_that_of_the_largest_image(plan: ConversionPlan, tmp_path: Path) -> None:
    text_file, projector = map(read_gguf, written(plan, tmp_path))

    def vision(side: int) -> int:
        found = predict_footprint(text_file, projector, n_ctx=512, image_sizes=[(side, side)])
        return found.vision_compute - 3 * side * side

    assert vision(16) == pytest.approx(vision(640))
