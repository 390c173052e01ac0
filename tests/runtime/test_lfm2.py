"""LFM2-VL's files that would end the process are refused; its images are cut as it was trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import array, u32

from edgevlm.errors import GGUFError, ImageError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import BitmapPart, ImageChunk
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.lfm2_canvas import Lfm2Canvas
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.goldens.files import drawn_image, redraw

CANVAS = Lfm2Canvas(patch=16, cell=32)
# Columns and rows of tiles, width and height of the image whole, as Lfm2VlImageProcessor has them.
SIZES = {
    (256, 256): (1, 1, 256, 256),
    (200, 300): (1, 1, 224, 320),
    (90, 48): (1, 1, 352, 192),
    (336, 336): (1, 1, 320, 320),
    (480, 640): (1, 1, 416, 576),
    (400, 17): (1, 1, 1248, 64),
    (1280, 720): (2, 1, 672, 384),
    (3000, 1000): (3, 1, 864, 288),
    (1000, 3000): (1, 3, 288, 864),
    (1024, 1024): (2, 2, 512, 512),
    (1999, 2000): (3, 3, 480, 512),
}
# Two shapes of tiles are as near: 800 to 960 lies between 2 to 3 and 1 to 1.
BETWEEN = [(720, 1600), (800, 960), (560, 960), (1305, 1566), (759, 2070), (1232, 2112)]


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"clip.vision.{key}": u32(value)})


def _heads(*numbers: int) -> Mutation:
    return text(nothing, {"lfm2.attention.head_count_kv": array("INT32", numbers)})


BROKEN: dict[str, Mutation] = {
    "1 x 1 patches": _number("projector.scale_factor", 1),
    "0 x 0 patches": mmproj(nothing, {"clip.vision.projector.scale_factor": None}),
    "3 x 3 patches": _number("projector.scale_factor", 3),
    "`mm.1.weight`": _number("projector.scale_factor", 4),
    "patches of 15 pixels": _number("patch_size", 15),
    "`v.patch_embd.weight`": _number("patch_size", 8),
    "5 attention heads": _number("attention.head_count", 5),
    "no tensor `v.position_embd.weight`": mmproj(without("v.position_embd.weight")),
    "48 positions": mmproj(instead("v.position_embd.weight", "v.blk.0.attn_q.weight")),
    "`mm.2.weight`": mmproj(without("mm.2.weight")),
    "`v.blk.1.attn_k.weight`": mmproj(without("v.blk.1.attn_k.weight")),
    "`v.blk.3": _number("block_count", 4),
    "l_cache = 1": text(nothing, {"lfm2.shortconv.l_cache": u32(1)}),
    "l_cache = 0": text(nothing, {"lfm2.shortconv.l_cache": None}),
    "head_count_kv = [0, 0, 0]": _heads(0, 0, 0),
    "head_count_kv = [2, 2, 2]": _heads(2, 2, 2),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("lfm2_vl", tmp_path_factory.mktemp("lfm2_vl")), outtype="f32")


def _write(plan: ConversionPlan, folder: Path) -> tuple[Path, Path]:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_file_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    model, projector = _write(BROKEN[blamed](plan), tmp_path)
    with pytest.raises(GGUFError) as caught:
        check_projector(projector, check_text_model(model)[0])
    assert blamed in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("size", "wanted"), SIZES.items(), ids=str)
def test_an_image_is_cut_as_transformers_cuts_it(
    size: tuple[int, int], wanted: tuple[int, int, int, int]
) -> None:
    columns, rows, width, height = wanted
    assert CANVAS.grid(*size) == (columns, rows)
    assert CANVAS.whole_size(*size) == (width, height)
    image = drawn_image(f"{size[1]}x{size[0]}-1")
    encodes = CANVAS.cut(image)
    shapes = [pixels.shape[:2] for pixels in encodes]
    n_tiles = columns * rows if columns * rows > 1 else 0
    assert shapes == [*[(512, 512)] * n_tiles, (height, width)]


def test_tiles_stand_row_by_row() -> None:
    image = drawn_image("1024x1024-2")
    upper_left, upper_right, lower_left, lower_right, _ = CANVAS.cut(image)
    found = np.block([[[upper_left], [upper_right]], [[lower_left], [lower_right]]])
    np.testing.assert_array_equal(found, image)


@pytest.fixture(scope="module")
def vlm(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLM]:
    model, projector = _write(plan, tmp_path_factory.mktemp("files"))
    with open_vlm(model=model, mmproj=projector, n_ctx=2048, device="cpu", strict=True) as opened:
        yield opened


@pytest.mark.parametrize("size", [*SIZES, *BETWEEN], ids=str)
def test_libmtmd_counts_the_tokens_of_our_tiles(vlm: VLM, size: tuple[int, int]) -> None:
    parts = [BitmapPart(width=size[0], height=size[1])]
    chunks = vlm.layouter.projector().tokenize(parts)
    found = [chunk.n_tokens for chunk in chunks if isinstance(chunk, ImageChunk)]
    columns, rows = CANVAS.grid(*size)
    width, height = CANVAS.whole_size(*size)
    n_tiles = columns * rows if columns * rows > 1 else 0
    assert found == [*[256] * n_tiles, width * height // 32**2]


def test_a_tile_is_named_and_the_whole_image_stands_last(vlm: VLM) -> None:
    image = drawn_image("720x1280-1")
    tokens = vlm.token_ids("What?", [image])
    names = vlm.spelled([token for token in tokens if token >= 0])
    turn = names[names.index("<|image_start|>") : names.index("<|image_end|>")]
    assert turn == "<|image_start|><|img_row_1_col_1|><|img_row_1_col_2|><|img_thumbnail|>"


def test_tiles_are_encoded_as_images_of_their_own(vlm: VLM) -> None:
    image = drawn_image("700x1500-3")
    encode = vlm.layouter.projector().encode
    together = encode(image)
    assert together.graph_input is not None
    for found, pixels in zip(together.tiles, CANVAS.cut(image), strict=True):
        (alone,) = encode(pixels).tiles
        np.testing.assert_array_equal(found, alone)


def test_a_line_is_no_image(vlm: VLM) -> None:
    with pytest.raises(ImageError, match="too thin"):
        vlm.token_ids("What?", [drawn_image("2x600-1")])


def test_memory_is_predicted_from_the_headers(
    plan: ConversionPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, projector = _write(plan, tmp_path)
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    with open_vlm(model=model, mmproj=projector, n_ctx=1024, n_threads=1) as opened:
        opened.first_logits("What?", [drawn_image("512x512-1")])
    files = read_gguf(model), read_gguf(projector)
    found = predict_footprint(*files, n_ctx=1024, image_sizes=[(512, 512)])
    # One layer of three has keys and values.
    assert found.kv_cache == 1024 * 2 * 2 * 16 * 2
    (graph,) = re.findall(
        r"reserve_compute_meta: +CPU compute buffer size = +([\d.]+)", caplog.text
    )
    assert float(graph) * 2**20 <= found.vision_compute <= 3 * float(graph) * 2**20


def test_tiles_take_memory(plan: ConversionPlan, tmp_path: Path) -> None:
    files = [read_gguf(path) for path in _write(plan, tmp_path)]

    def vision(width: int, height: int, n_ctx: int) -> int:
        size = [(width, height)]
        return predict_footprint(*files, n_ctx=n_ctx, image_sizes=size).vision_compute

    n_source = 3 * (1024 * 1024 - 512 * 512)
    tiles = vision(1024, 1024, 4096) - vision(512, 512, 4096) - n_source
    assert tiles >= 4 * 6 * 512 * 512
    # What a context cannot hold is not encoded.
    assert vision(1024, 1024, 512) < vision(1024, 1024, 4096)
