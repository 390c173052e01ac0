"""Granite 4 Vision projectors that would end the process: refused by their headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, u32

from edgevlm.errors import GGUFError, ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.granite4_projector import n_tiles
from edgevlm.runtime.preflight import check_projector, check_text_model
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.goldens.files import redraw
from tests.runtime.broken_projectors import written

VISION = "clip.vision."


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


def _list(key: str, values: list[int]) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": array("INT32", values)})


BROKEN: dict[str, Mutation] = {
    "no tensor `v.image_newline`": mmproj(without("v.image_newline")),
    "no tensor `v.proj_blk.2.query`": mmproj(without("v.proj_blk.2.query")),
    "tensor `v.proj_blk.0.img_pos`": mmproj(instead("v.proj_blk.0.img_pos", "v.proj_blk.0.query")),
    "no tensor `v.proj_blk.1.cross_attn_k.weight`": mmproj(
        without("v.proj_blk.1.cross_attn_k.weight")
    ),
    "no tensor `v.blk.1.ffn_up.weight`": mmproj(without("v.blk.1.ffn_up.weight")),
    "reads layers [3, 0, 0]": _list("feature_layer", [3, 0, 0]),
    "reads layers []": _list("feature_layer", []),
    "at offsets [-1, 4, -1]": _list("projector.spatial_offsets", [-1, 4, -1]),
    "at offsets [-1]": _list("projector.spatial_offsets", [-1]),
    "windows of 4 x 4 patches that become 1 x 1": _number("projector.query_side", 1),
    "windows of 4 x 4 patches that become 2 x 2, in 5 x 5": _number("image_size", 10),
    "3 attention heads, which do not divide its width 64": _number("attention.head_count", 3),
    "scales images into []": _list("image_grid_pinpoints", []),
    "scales images into [16, 24]": _list("image_grid_pinpoints", [16, 24]),
    "scales images into [16]": _list("image_grid_pinpoints", [16]),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("granite4_vision", tmp_path_factory.mktemp("granite4")))


def _check(plan: ConversionPlan, folder: Path) -> None:
    text_path, projector = written(plan, folder)
    check_projector(projector, check_text_model(text_path)[0])


def test_a_converted_one_passes(plan: ConversionPlan, tmp_path: Path) -> None:
    _check(plan, tmp_path)


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    with pytest.raises(GGUFError) as caught:
        _check(BROKEN[blamed](plan), tmp_path)
    assert blamed in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "mapping", [[-1, 1, -1], [-1, 1, 3], [1, 2, -1], [-1, 1, 2, -1], [-1, 1, 1]]
)
def test_a_text_model_that_takes_other_streams_is_refused(
    plan: ConversionPlan, tmp_path: Path, mapping: list[int]
) -> None:
    changed = text(nothing, {"granite.deepstack_mapping": array("INT32", mapping)})
    with pytest.raises(ModelLoadError, match="gives 3 streams of features"):
        _check(changed(plan), tmp_path)


def test_tiles_and_their_memory(plan: ConversionPlan, tmp_path: Path) -> None:
    text_file, projector = map(read_gguf, written(plan, tmp_path))
    sizes = {(16, 16): 1, (32, 16): 2, (16, 32): 2, (300, 300): 4, (90, 30): 3, (8, 8): 1}
    assert {size: n_tiles(projector, *size) for size in sizes} == sizes

    def vision(size: tuple[int, int]) -> int:
        found = predict_footprint(text_file, projector, n_ctx=512, image_sizes=[size])
        return found.vision_compute - 3 * size[0] * size[1]

    # In one graph: overview and tiles together.
    assert vision((32, 32)) / vision((16, 16)) == pytest.approx(5 / 2, rel=0.01)
