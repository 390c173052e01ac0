"""Pixtral projectors that would end the process: refused by their headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.errors import GGUFError, ModelLoadError
from edgevlm.runtime.preflight import check_projector, check_text_model
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import redraw

VISION = "clip.vision."


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "v.token_embd.img_break": mmproj(without("v.token_embd.img_break")),
    "tensor `v.token_embd.img_break`": mmproj(instead("v.token_embd.img_break", "v.pre_ln.weight")),
    "mm.1.weight": mmproj(without("mm.1.weight")),
    "mm.2.weight": mmproj(without("mm.2.weight")),
    "mm.input_norm.weight": mmproj(without("mm.input_norm.weight")),
    "without a matrix for it": mmproj(without("mm.patch_merger.weight")),
    "tensor `mm.patch_merger.weight`": _number("spatial_merge_size", 3),
    "spatial_merge_size 17": _number("spatial_merge_size", 17),
    "v.patch_embd.weight": mmproj(without("v.patch_embd.weight")),
    "tensor `v.patch_embd.weight`": _number("patch_size", 9),
    "v.blk.1.attn_k.weight": mmproj(without("v.blk.1.attn_k.weight")),
    "v.blk.0.ffn_down.weight": mmproj(without("v.blk.0.ffn_down.weight")),
    "v.blk.3": _number("block_count", 4),
    "5 attention heads": _number("attention.head_count", 5),
    "48 channels in 8 heads": _number("attention.head_count", 8),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("mistral3", tmp_path_factory.mktemp("mistral3")))


def _check(plan: ConversionPlan, folder: Path) -> None:
    text, projector = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=text, mmproj_path=projector)
    check_projector(projector, check_text_model(text)[0])


@pytest.mark.parametrize("name", ["pixtral", "mistral3"])
def test_a_converted_one_passes(tmp_path: Path, name: str) -> None:
    _check(plan_conversion(redraw(name, tmp_path / "checkpoint")), tmp_path)


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    with pytest.raises(GGUFError) as caught:
        _check(BROKEN[blamed](plan), tmp_path)
    assert blamed in caught.value.message
    assert caught.value.hint


def test_a_vocabulary_without_the_end_of_an_image_is_refused(
    plan: ConversionPlan, tmp_path: Path
) -> None:
    _check(plan, tmp_path)
    text = tmp_path / "text.gguf"
    text.write_bytes(text.read_bytes().replace(b"[IMG_END]", b"[IMG_ENT]"))
    with pytest.raises(ModelLoadError, match=r"lacks '\[IMG_END\]'"):
        check_projector(tmp_path / "mmproj.gguf", check_text_model(text)[0])
