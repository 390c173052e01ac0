"""LLaVA projectors that would end the process: refused by their headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import array, u32

from edgevlm.errors import GGUFError
from edgevlm.runtime.preflight import check_projector, check_text_model
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import redraw

VISION = "clip.vision."


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


def _layers(*layers: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}feature_layer": array("INT32", layers)})


BROKEN: dict[str, Mutation] = {
    "mm.0.weight": mmproj(without("mm.0.weight")),
    "mm.0.bias": mmproj(without("mm.0.bias")),
    "mm.2.weight": mmproj(without("mm.2.weight")),
    "mm.2.bias": mmproj(without("mm.2.bias")),
    "v.patch_embd.weight": mmproj(without("v.patch_embd.weight")),
    "v.position_embd.weight": mmproj(without("v.position_embd.weight")),
    "v.blk.1.attn_k.weight": mmproj(without("v.blk.1.attn_k.weight")),
    "v.blk.0.ln2.weight": mmproj(without("v.blk.0.ln2.weight")),
    "v.blk.2": _number("block_count", 3),
    "tensor `v.position_embd.weight`": _number("image_size", 80),
    "tensor `v.patch_embd.weight`": _number("patch_size", 9),
    "tensor `v.class_embd`": mmproj(instead("v.class_embd", "mm.0.bias")),
    "images of 7 pixels in patches of 8": _number("image_size", 7),
    "5 attention heads, which do not divide its width 32": _number("attention.head_count", 5),
    "tensor `mm.0.weight`": _layers(1, 2),
    "reads block 3 of 2": _layers(3),
    "tensor `mm.2.weight`": _number("projection_dim", 64),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("llava_clip_llama", tmp_path_factory.mktemp("llava")))


def _check(plan: ConversionPlan, folder: Path) -> None:
    text, projector = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=text, mmproj_path=projector)
    check_projector(projector, check_text_model(text)[0])


def test_a_converted_one_passes(plan: ConversionPlan, tmp_path: Path) -> None:
    _check(plan, tmp_path)


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    with pytest.raises(GGUFError) as caught:
        _check(BROKEN[blamed](plan), tmp_path)
    assert blamed in caught.value.message
    assert caught.value.hint
