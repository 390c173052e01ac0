"""Gemma 4 without towers: images stretched, broken files refused, tokens never sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, u32

from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.gemma4_canvas import Gemma4Canvas
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, text, without
from tests.goldens.files import drawn_image, redraw
from tests.quantize.projectors import cosines, embeddings
from tests.quantize.quantizing import quantize_file
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "no tensor `v.patch_embd.weight`": mmproj(without("v.patch_embd.weight")),
    "no tensor `v.patch_embd.bias`": mmproj(without("v.patch_embd.bias")),
    "no tensor `v.patch_norm.3.bias`": mmproj(without("v.patch_norm.3.bias")),
    "tensor `v.patch_norm.1.weight`": mmproj(
        instead("v.patch_norm.1.weight", "v.patch_norm.2.weight")
    ),
    "tensor `v.patch_embd.weight`": _number("patch_size", 8),
    "tensor `mm.input_projection.weight`": mmproj(
        instead("mm.input_projection.weight", "v.position_embd.weight")
    ),
    "block_count = 2": _number("block_count", 2),
    "attention.head_count = 4": _number("attention.head_count", 4),
    "scales images to 9000 pixels": _number("image_max_pixels", 9000),
    "in tokens of 0 x 0": _number("projector.scale_factor", 0),
    "70 positions, and images of up to 140": _number("image_max_pixels", 140 * 144),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    folder = tmp_path_factory.mktemp("gemma4_unified")
    return plan_conversion(redraw("gemma4_unified", folder / "checkpoint"), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


def test_no_width_makes_visual_tokens_look_back_only(plan: ConversionPlan, tmp_path: Path) -> None:
    model, projector = written(plan, tmp_path)
    span = check_projector(projector, check_text_model(model)[0])
    assert span.n_whole == span.max_tokens == 70


@pytest.mark.parametrize("name", ["84x120-1", "40x40-1", "400x90-2", "2x300-3"])
def test_the_runtime_counts_what_the_canvas_says(
    plan: ConversionPlan, tmp_path: Path, name: str
) -> None:
    model, projector = written(plan, tmp_path)
    image = drawn_image(name)
    height, width, _ = image.shape
    wide, high = Gemma4Canvas(cell=12, max_tokens=70).laid_out(width, height)
    with open_vlm(model=model, mmproj=projector, n_ctx=512, device="cpu") as vlm:
        assert vlm.count_visual_tokens(width, height) == wide * high // 144
        (found,) = vlm.encode(image).tiles
    assert len(found) == wide * high // 144
    assert np.isfinite(found).all()


def test_a_token_that_the_file_suppresses_is_never_sampled(
    plan: ConversionPlan, tmp_path: Path
) -> None:
    def first(tokens: list[int]) -> int:
        key = "tokenizer.ggml.suppress_tokens"
        changed = text(nothing, {key: array("INT32", tokens)})(plan)
        model, projector = written(changed, tmp_path)
        with open_vlm(model=model, mmproj=projector, n_ctx=512, device="cpu") as vlm:
            answer = vlm.generate("What is it?", params=SamplingParams(max_tokens=1))
        return answer.token_ids[0]

    usual = first([])
    assert first([usual]) != usual
    # llama.cpp leaves out what is no token.
    assert first([1 << 30]) == usual


def test_its_one_matrix_may_be_of_blocks(plan: ConversionPlan, tmp_path: Path) -> None:
    model, source = written(plan, tmp_path)
    target = tmp_path / "target.gguf"
    quantize_file(source, target, mmproj_encoder("Q8_0"))
    types = {tensor.name: tensor.type for tensor in read_gguf(target).tensors}
    assert types["mm.input_projection.weight"] == "Q8_0"
    assert types["v.patch_embd.weight"] == types["v.position_embd.weight"] == "F32"
    pair = [embeddings(model, path, "84x120-1") for path in (source, target)]
    assert cosines(*pair).min() > 0.999


def test_the_memory_of_an_image_is_that_of_the_budget(plan: ConversionPlan, tmp_path: Path) -> None:
    files = [read_gguf(path) for path in written(plan, tmp_path)]
    small, large = (
        predict_footprint(*files, n_ctx=512, image_sizes=[size]).vision_compute
        for size in ((20, 20), (120, 84))
    )
    assert small == pytest.approx(large, rel=0.2)
    # Pixels a few times over, and no tower's 9.5 widths for each of 9 patches.
    assert large < 70 * 144 * 3 * 4 * 8
