"""DeepSeek-OCR: rows of tiles in one encode, CLIP's positions put right, broken files refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import TextChunk
from edgevlm.runtime import preflight
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.prompt import IMAGE_SPANS, Message
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, golden_cases, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "32 channels in 5 heads of SAM": _number("sam.head_count", 5),
    "windows of 65 patches": _number("window_size", 65),
    "no tensor `v.class_embd`": mmproj(without("v.class_embd")),
    "no tensor `v.image_newline`": mmproj(without("v.image_newline")),
    "no tensor `v.pre_ln.bias`": mmproj(without("v.pre_ln.bias")),
    "tensor `v.position_embd.weight`": mmproj(
        instead("v.position_embd.weight", "v.blk.0.attn_qkv.weight")
    ),
    "tensor `mm.model.fc.weight`": mmproj(instead("mm.model.fc.weight", "v.blk.0.attn_out.weight")),
    "no tensor `v.blk.4": _number("block_count", 5),
    "into 2 to 257 tiles": _number("preproc_max_tiles", 257),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    folder = tmp_path_factory.mktemp("deepseek")
    return plan_conversion(redraw("deepseek_ocr", folder), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


@pytest.fixture(scope="module")
def files(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written(plan, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def vlm(files: tuple[Path, Path]) -> Iterator[VLM]:
    model, projector = files
    with open_vlm(model=model, mmproj=projector, n_ctx=1024, device="cpu", strict=True) as opened:
        yield opened


def test_a_row_of_tiles_is_one_encode(vlm: VLM) -> None:
    wide, tall = drawn_image("330x660-1"), drawn_image("660x330-1")
    chunks = vlm.layouter.lay_out([Message(role="user", content=(wide, tall, "x"))]).chunks
    sizes = [chunk.n_tokens for chunk in chunks if not isinstance(chunk, TextChunk)]
    # Ten rows of twenty tokens and an end; twice ten of ten; sixteen of sixteen, and a separator.
    assert sizes == [10 * 21, 16 * 17 + 1, 10 * 11, 10 * 11, 16 * 17 + 1]


def test_without_the_tables_put_right_tiles_are_others(
    vlm: VLM, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawn_image("330x660-1")
    (case,) = (one for one in golden_cases("deepseek_ocr") if one.name == "one image")
    wanted = case.images[0].embeddings
    assert wanted is not None
    plain = replace(IMAGE_SPANS["deepseekocr"], smooth_table=False)
    monkeypatch.setattr(preflight, "IMAGE_SPANS", {**IMAGE_SPANS, "deepseekocr": plain})
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1024, device="cpu", strict=True) as stock:
        unmended = np.concatenate(stock.encode(image).tiles)
    mended = np.concatenate(vlm.encode(image).tiles)
    n_tiles = 10 * 21
    worst = [np.abs(rows - wanted)[:n_tiles].max() for rows in (mended, unmended)]
    assert worst[0] < 0.01 < worst[1]
    np.testing.assert_array_equal(mended[n_tiles:], unmended[n_tiles:])


def test_a_long_row_of_tiles_costs_more_than_the_whole(files: tuple[Path, Path]) -> None:
    text_file, projector = (read_gguf(path) for path in files)
    small, tall, wide = (
        predict_footprint(text_file, projector, n_ctx=2048, image_sizes=[size]).vision_compute
        for size in ((640, 480), (400, 3600), (3600, 400))
    )
    # Nine tiles side by side are 1.37 times the pairs of patches of the whole, and more pixels.
    assert small < tall < 1.2 * small < 1.4 * small < wide
