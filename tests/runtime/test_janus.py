"""Projectors of Janus-Pro and DeepSeek-VL: broken files are refused, prompts are as trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.errors import GGUFError
from edgevlm.native.projector import ImageChunk, TextChunk
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, redraw


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"clip.vision.{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "images of 7 pixels in patches of 8": _number("image_size", 7),
    "6 attention heads": _number("attention.head_count", 6),
    "`v.patch_embd.weight`": _number("patch_size", 9),
    "`v.position_embd.weight`": _number("image_size", 64),
    "no tensor `v.position_embd.weight`": mmproj(without("v.position_embd.weight")),
    "`v.blk.0.ffn_up.weight`": _number("feed_forward_length", 73),
    "no tensor `v.blk.1.attn_k.weight`": mmproj(without("v.blk.1.attn_k.weight")),
    "`v.blk.3": _number("block_count", 4),
    "no tensor `mm.0.bias`": mmproj(without("mm.0.bias")),
    "`mm.1.weight`": mmproj(instead("mm.1.weight", "mm.0.weight")),
    "no tensor `mm.1.bias`": mmproj(without("mm.1.bias")),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("janus", tmp_path_factory.mktemp("janus")), outtype="f32")


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


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("janus", "<|User|>: <begin_of_image>[36]<end_of_image>\nWhat?\n\n<|Assistant|>:"),
        ("deepseek_vl", "User: [36]\nWhat?\n\nAssistant:"),
    ],
)
def test_what_stands_around_an_image(name: str, written: str, tmp_path: Path) -> None:
    plan = plan_conversion(redraw(name, tmp_path / "checkpoint"), outtype="f32")
    model, projector = _write(plan, tmp_path)
    message = Message(role="user", content=(drawn_image("48x48-1"), "What?"))
    with open_vlm(model=model, mmproj=projector, n_ctx=256, device="cpu") as vlm:
        found = ""
        for chunk in vlm.layouter.lay_out([message]).chunks:
            assert isinstance(chunk, TextChunk | ImageChunk)
            is_text = isinstance(chunk, TextChunk)
            found += vlm.spelled(chunk.tokens) if is_text else f"[{chunk.n_tokens}]"
    assert written in found
