"""MiniCPM-V 4.6: pieces of images as it was trained on them, and files that are refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.errors import GGUFError, ImageError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import ImageChunk, TextChunk
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, redraw

CANVAS = SliceCanvas(side=448, cell=56)
# Columns and rows of slices, the whole image, a slice: as MiniCPMV4_6ImageProcessorPil has them.
SIZES = {
    (448, 448): ((0, 0), (448, 448), None),
    (300, 200): ((0, 0), (560, 392), None),
    (600, 300): ((0, 0), (616, 336), None),
    (640, 480): ((2, 1), (504, 392), (392, 560)),
    (512, 512): ((1, 2), (448, 448), (616, 336)),
    (1024, 1024): ((3, 2), (448, 448), (336, 560)),
    (1920, 1080): ((4, 2), (616, 336), (448, 448)),
    (3024, 4032): ((3, 3), (392, 504), (392, 504)),
}


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"clip.vision.{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "3 x 3 patches": _number("projector.scale_factor", 3),
    "slices of 25": _number("image_size", 25),
    "slices of 8000": _number("image_size", 8000),
    "5 attention heads": _number("attention.head_count", 5),
    "`v.patch_embd.weight`": _number("patch_size", 3),
    "no tensor `v.position_embd.weight`": mmproj(without("v.position_embd.weight")),
    "`v.position_embd.weight`": mmproj(instead("v.position_embd.weight", "v.blk.0.attn_q.weight")),
    "`mm.up.weight`": mmproj(without("mm.up.weight")),
    "`mm.down.weight`": mmproj(instead("mm.down.weight", "mm.up.weight")),
    "`v.vit_merger.ds_ln.weight`": mmproj(without("v.vit_merger.ds_ln.weight")),
    "`v.vit_merger.attn_k.weight`": mmproj(without("v.vit_merger.attn_k.weight")),
    "`v.blk.2.attn_k.weight`": mmproj(without("v.blk.2.attn_k.weight")),
    "`v.blk.4": _number("block_count", 5),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("minicpmv4_6", tmp_path_factory.mktemp("minicpm")), outtype="f32")


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
    size: tuple[int, int],
    wanted: tuple[tuple[int, int], tuple[int, int], tuple[int, int] | None],
) -> None:
    grid, whole, piece = wanted
    assert CANVAS.grid(*size) == grid
    assert CANVAS.whole_size(*size) == whole
    if piece:
        assert CANVAS.slice_size(*size) == piece


def test_the_whole_image_comes_first_and_slices_row_by_row() -> None:
    image = drawn_image("896x448-1")
    whole, upper, lower = CANVAS.cut(image)
    assert whole.shape == (616, 336, 3)
    np.testing.assert_array_equal(np.concatenate([upper, lower]), image)


@pytest.fixture(scope="module")
def vlm(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLM]:
    model, projector = _write(plan, tmp_path_factory.mktemp("files"))
    with open_vlm(model=model, mmproj=projector, n_ctx=1024, device="cpu", strict=True) as opened:
        yield opened


def _spelled(vlm: VLM, messages: list[Message]) -> str:
    """Return the prompt in words, an image's tokens as their number."""
    found = ""
    for chunk in vlm.layouter.lay_out(messages).chunks:
        assert isinstance(chunk, TextChunk | ImageChunk)
        is_text = isinstance(chunk, TextChunk)
        found += vlm.spelled(chunk.tokens) if is_text else f"[{chunk.n_tokens}]"
    return found


def test_images_are_numbered_and_slices_stand_in_rows(vlm: VLM) -> None:
    first, second = drawn_image("24x24-1"), drawn_image("48x48-2")
    messages = [Message(role="user", content=(first, "And", second, "?"))]
    assert (
        "<image_id>0</image_id><image>[9]</image>And"
        "<image_id>1</image_id><image>[9]</image><slice>[9]</slice><slice>[9]</slice>\n"
        "<slice>[9]</slice><slice>[9]</slice>?"
    ) in _spelled(vlm, messages)


def test_what_a_user_writes_is_no_number_of_an_image(vlm: VLM) -> None:
    image = drawn_image("24x24-1")
    ids = vlm.token_ids("<image_id>7</image_id>", [image])
    names = vlm.spelled([token for token in ids if token >= 0])
    first = vlm.token_ids("", [image])[:12]
    control = [token for token in first if vlm.spelled([token]) == "<image_id>"]
    assert len(control) == 1
    assert ids.count(control[0]) == 1
    assert names.count("<image_id>") == 2


@pytest.mark.parametrize("image", ["24x24-1", "48x24-2", "24x32-3", "70x20-4", "200x150-5"])
def test_as_many_embeddings_come_as_were_laid_out(vlm: VLM, image: str) -> None:
    pixels = drawn_image(image)
    encoded = vlm.layouter.projector().encode(pixels)
    n_tokens = vlm.count_visual_tokens(pixels.shape[1], pixels.shape[0])
    assert sum(map(len, encoded.tiles)) == n_tokens
    assert encoded.graph_input is not None
    assert len(encoded.tiles) == len(encoded.graph_input.tiles)


def test_a_line_is_no_image(vlm: VLM) -> None:
    with pytest.raises(ImageError, match="too thin"):
        vlm.token_ids("What?", [drawn_image("2x600-1")])


def test_memory_is_predicted_from_the_headers(
    plan: ConversionPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, projector = _write(plan, tmp_path)
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    with open_vlm(model=model, mmproj=projector, n_ctx=512, n_threads=1) as opened:
        opened.first_logits("What?", [drawn_image("24x24-1")])
    files = read_gguf(model), read_gguf(projector)
    found = predict_footprint(*files, n_ctx=512, image_sizes=[(24, 24)]).vision_compute
    (graph,) = re.findall(
        r"reserve_compute_meta: +CPU compute buffer size = +([\d.]+)", caplog.text
    )
    assert float(graph) * 2**20 <= found


def test_slices_take_memory(plan: ConversionPlan, tmp_path: Path) -> None:
    files = [read_gguf(path) for path in _write(plan, tmp_path)]

    def vision(width: int, height: int) -> int:
        sizes = [(width, height)]
        return predict_footprint(*files, n_ctx=512, image_sizes=sizes).vision_compute

    n_source = 3 * (48 * 48 - 24 * 24)
    assert vision(48, 48) - vision(24, 24) - n_source >= 4 * 6 * 24 * 24
