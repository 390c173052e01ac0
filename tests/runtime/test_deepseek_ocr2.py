"""DeepSeek-OCR 2: tiles and wholes as it was trained on them, its table smoothed, broken files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import f32, u32

from edgevlm.errors import GGUFError, ImageError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import ImageChunk, TextChunk
from edgevlm.native.smooth_table import smoothed
from edgevlm.runtime import preflight
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.page_canvas import PageCanvas
from edgevlm.runtime.preflight import check_text_model
from edgevlm.runtime.prompt import IMAGE_SPANS, Message
from edgevlm.runtime.tile_canvas import TileCanvas
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.goldens.files import drawn_image, golden_cases, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
CANVAS = PageCanvas(tiles=TileCanvas(side=768, max_tiles=6, min_tiles=2), side=1024)
# Columns and rows of tiles: as transformers 5.23 has them, which gave the same as the canvas for
# 180,000 random sizes with 6, 9 and 32 tiles at most; pixels were the same for seven images.
GRIDS = {
    (640, 488): (0, 0),
    (768, 768): (0, 0),
    (769, 768): (2, 2),
    (390, 776): (1, 2),
    (1500, 1100): (3, 2),
    (2480, 3508): (2, 3),
    (2000, 301): (6, 1),
}


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "4 heads with 3 of keys": _number("attention.head_count_kv", 3),
    "4 heads with 0 of keys": mmproj(nothing, {f"{VISION}attention.head_count_kv": None}),
    "32 channels in 5 heads of SAM": _number("sam.head_count", 5),
    "windows of 65 patches": _number("window_size", 65),
    "in 4000 layers": _number("sam.block_count", 4000),
    "tensor `v.sam.blk.0.attn.pos_h.weight`": _number("window_size", 13),
    "no tensor `v.sam.blk.3.attn.pos_h.weight`": _number("sam.block_count", 4),
    "no tensor `v.sam.pos_embd.weight`": mmproj(without("v.sam.pos_embd.weight")),
    "no tensor `v.sam.net_3.weight`": mmproj(without("v.sam.net_3.weight")),
    "no tensor `v.view_seperator`": mmproj(without("v.view_seperator")),
    "tensor `v.resample_query_768.weight`": mmproj(
        instead("v.resample_query_768.weight", "v.resample_query_1024.weight")
    ),
    "tensor `v.blk.1.attn_k.weight`": mmproj(
        instead("v.blk.1.attn_k.weight", "v.blk.1.attn_q.weight")
    ),
    "no tensor `v.blk.4": _number("block_count", 5),
    "into 1 to 6 tiles": _number("preproc_min_tiles", 1),
    "into 2 to 257 tiles": _number("preproc_max_tiles", 257),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    folder = tmp_path_factory.mktemp("deepseek")
    return plan_conversion(redraw("deepseek_ocr2", folder), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope.freq_base", f32(1e6)), ("attention.key_length", u32(8))],
    ids=lambda one: str(one),
)
def test_a_text_model_that_would_end_the_process_is_refused(
    plan: ConversionPlan, tmp_path: Path, key: str, value: object
) -> None:
    changed = text(nothing, {f"deepseek2-ocr.{key}": value})(plan)  # type: ignore[dict-item]
    with pytest.raises(GGUFError, match=key.split(".")[-1].replace("freq_base", "rotary base")):
        check_text_model(written(changed, tmp_path)[0])


def test_an_image_is_cut_as_transformers_cuts_it() -> None:
    assert {size: CANVAS.grid(*size) for size in GRIDS} == GRIDS
    image = drawn_image("776x390-1")
    tiled = CANVAS.cut_from(image)
    assert tiled is not None
    assert tiled.shape == (1536, 768, 3)
    whole = CANVAS.whole(image)
    assert whole.shape == (1024, 1024, 3)
    assert (whole[:, :254] == 127).all()
    assert (whole[:, 300] != 127).any()
    assert CANVAS.cut_from(drawn_image("48x64-1")) is None


def test_a_table_is_smoothed_as_torch_smooths_it() -> None:
    table = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) ** 2
    # torch.nn.functional.interpolate(table, size=(3, 3), mode="bicubic", antialias=True)
    wanted = [
        [1.5723444, 5.8466086, 13.413925],
        [40.101818, 58.106312, 79.403877],
        [131.32011, 163.05486, 198.08267],
    ]
    np.testing.assert_allclose(smoothed(table, 3, 3)[0, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(smoothed(table, 4, 4), table, atol=1e-5)


@pytest.fixture(scope="module")
def files(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written(plan, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def vlm(files: tuple[Path, Path]) -> Iterator[VLM]:
    model, projector = files
    with open_vlm(model=model, mmproj=projector, n_ctx=1024, device="cpu", strict=True) as opened:
        yield opened


def test_tiles_come_first_and_nothing_is_written_around_them(vlm: VLM) -> None:
    tall, small = drawn_image("776x390-1"), drawn_image("48x64-2")
    chunks = vlm.layouter.lay_out([Message(role="user", content=(tall, "a", small, "b"))]).chunks
    found = [
        vlm.spelled(chunk.tokens) if isinstance(chunk, TextChunk) else chunk.n_tokens
        for chunk in chunks
    ]
    assert all(isinstance(chunk, TextChunk | ImageChunk) for chunk in chunks)
    bos = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    assert found == [bos, 144, 144, 257, "\na", 257, "\nb"]


def test_without_smoothing_tiles_are_others(
    vlm: VLM, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawn_image("776x390-1")
    (case,) = (one for one in golden_cases("deepseek_ocr2") if one.name == "one image")
    wanted = case.images[0].embeddings
    assert wanted is not None
    plain = replace(IMAGE_SPANS["deepseekocr2"], smooth_table=False)
    monkeypatch.setattr(preflight, "IMAGE_SPANS", {**IMAGE_SPANS, "deepseekocr2": plain})
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1024, device="cpu", strict=True) as stock:
        unsmoothed = np.concatenate(stock.encode(image).tiles)
    mended = np.concatenate(vlm.encode(image).tiles)
    n_tiles = 2 * 144
    worst = [np.abs(rows - wanted)[:n_tiles].max() for rows in (mended, unsmoothed)]
    assert worst[0] < 0.01 < worst[1]
    # The whole image has the table's own size.
    np.testing.assert_array_equal(mended[n_tiles:], unsmoothed[n_tiles:])


def test_an_image_too_thin_is_refused(vlm: VLM) -> None:
    with pytest.raises(ImageError, match="too thin"):
        vlm.count_visual_tokens(2048, 1)


def test_more_tiles_cost_no_more_memory_at_once(files: tuple[Path, Path]) -> None:
    text_file, projector = (read_gguf(path) for path in files)
    small, large = (
        predict_footprint(text_file, projector, n_ctx=2048, image_sizes=[size]).vision_compute
        for size in ((640, 480), (2480, 3508))
    )
    # Masks of 4096 x 4096 for both heads are what counts.
    assert 2 * 4096**2 * 4 < small < large < 1.3 * small
