"""HunYuanVL: four positions of every token, sizes as transformers', broken files refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, u32

from edgevlm.errors import ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.native import projector as native_projector
from edgevlm.native.projector import ImageChunk
from edgevlm.native.rope_positions import RopePositions
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message, conversation
from edgevlm.runtime.stretch_canvas import StretchCanvas
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.convert.test_reference import kld
from tests.goldens.files import drawn_image, golden_cases, redraw
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
PUBLISHED = StretchCanvas(cell=32, least=512 * 512, most=2048 * 2048, widens=False)
# What transformers 5.23's `smart_resize` makes of a size; it gave the same as the canvas for
# 141,000 random sizes.
STRETCHED = {
    (640, 488): (640, 480),
    (2480, 3508): (1696, 2432),
    (10, 700): (64, 4288),
    (50, 50): (512, 512),
    (5000, 100): (4992, 96),
    (20, 30): (448, 640),
}


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "3 attention heads": _number("attention.head_count", 3),
    "merges 3 x 3 patches": _number("spatial_merge_size", 3),
    "with 40 positions": mmproj(instead("v.position_embd.weight", "v.blk.0.attn_q.weight")),
    "no tensor `mm.image_begin`": mmproj(without("mm.image_begin")),
    "no tensor `v.image_newline`": mmproj(without("v.image_newline")),
    "tensor `mm.0.weight`": mmproj(instead("mm.0.weight", "mm.2.weight")),
    "no tensor `v.blk.1.attn_k.bias`": mmproj(without("v.blk.1.attn_k.bias")),
    "no tensor `v.blk.3": _number("block_count", 4),
    "scales images to 131072 to 65536 pixels": _number("image_min_pixels", 1 << 17),
    "to 1073741824 pixels": _number("image_max_pixels", 1 << 30),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("hunyuan_vl", tmp_path_factory.mktemp("hunyuan")), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


def test_a_text_model_of_three_positions_is_refused(plan: ConversionPlan, tmp_path: Path) -> None:
    sections = {"hunyuan_vl.rope.dimension_sections": array("INT32", [4, 6, 6, 0])}
    model, projector = written(text(nothing, sections)(plan), tmp_path)
    with pytest.raises(ModelLoadError, match=r"rotary sections \[4, 6, 6, 0\]"):
        check_projector(projector, check_text_model(model)[0])


def test_sizes_are_transformers() -> None:
    assert {size: PUBLISHED.laid_out(*size) for size in STRETCHED} == STRETCHED


@pytest.fixture(scope="module")
def files(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written(plan, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def vlm(files: tuple[Path, Path]) -> Iterator[VLM]:
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1024, device="cpu", strict=True) as opened:
        yield opened


def test_rows_and_columns_stay_where_text_moves(vlm: VLM) -> None:
    images = [drawn_image("32x48-1"), drawn_image("32x32-2")]
    chunks = vlm.layouter.lay_out(conversation("x", images)).chunks
    first, second = (chunk for chunk in chunks if isinstance(chunk, ImageChunk))
    # Begin, two rows of three and the end of each, end.
    places, columns, rows, numbers = first.positions_at(7).tolist()
    assert places == list(range(7, 17))
    assert columns == [7, 0, 1, 2, 3, 0, 1, 2, 3, 16]
    assert rows == [7, 0, 0, 0, 0, 1, 1, 1, 1, 16]
    assert numbers == [7, *[0] * 8, 16]
    assert second.positions_at(3)[3].tolist() == [3, *[1] * 6, 10]
    assert first.n_positions_used == first.n_tokens


def _worst(files: tuple[Path, Path]) -> dict[str, float]:
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1024, device="cpu", strict=True) as opened:
        return {case.name: float(kld(opened, case).max()) for case in golden_cases("hunyuan_vl")}


def _see_nothing(*_: object) -> bool:
    return False


def _nothing(*_: object) -> None:
    return None


def test_without_the_fourth_position_text_is_another(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RopePositions, "see", _see_nothing)
    monkeypatch.setattr(RopePositions, "end", _nothing)
    assert min(_worst(files).values()) > 1e-2


def test_where_rows_move_with_the_text_images_are_others(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_projector.Projector, "_moves", _nothing)
    worst = _worst(files)
    assert worst.pop("text only") < 1e-5
    assert min(worst.values()) > 1e-3


def test_a_graph_without_positions_is_an_error() -> None:
    positions = RopePositions()
    positions.wanted = np.zeros((4, 1), np.int32)
    positions.begin()
    with pytest.raises(RuntimeError, match="inp_pos"):
        positions.end()


def test_a_second_question_finds_the_image_where_it_was(vlm: VLM) -> None:
    image = drawn_image("48x64-1")
    asked = [
        Message(role="user", content=(image, "What is in the image?")),
        Message(role="assistant", content=("A circle",)),
        Message(role="user", content=("Is it red?",)),
    ]
    vlm.generate(asked[:1])
    warm = vlm.generate(asked)
    assert warm.n_reused_tokens > warm.n_visual_tokens > 0
    vlm.forget()
    assert vlm.generate(asked).token_ids == warm.token_ids


def test_a_larger_image_costs_more_memory(files: tuple[Path, Path]) -> None:
    text_file, projector = (read_gguf(path) for path in files)
    small, large = (
        predict_footprint(text_file, projector, n_ctx=2048, image_sizes=[size]).vision_compute
        for size in ((64, 48), (256, 256))
    )
    assert small < large
    assert np.isfinite([small, large]).all()
