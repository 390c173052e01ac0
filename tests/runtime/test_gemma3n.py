"""Gemma 3n projectors: images stretched and ended as transformers does, broken files refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, u32
from edgevlm_convert.writer import OutputTensor
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.runtime.ended_canvas import EndedCanvas
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.layout import VISUAL_TOKEN
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import (
    Change,
    Mutation,
    both,
    instead,
    mmproj,
    nothing,
    text,
    values,
    without,
)
from tests.goldens.files import drawn_image, redraw
from tests.quantize.projectors import cosines, embeddings
from tests.quantize.quantizing import quantize_file
from tests.runtime.broken_projectors import check_refused, written

VISION = "clip.vision."
_SOFT, _END = "mm.soft_emb_norm.weight", "v.token_embd.img_end"


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


def _shaped(name: str, shape: tuple[int, ...]) -> Change:
    """Write the values of a tensor in another shape."""

    def change(tensors: dict[str, OutputTensor]) -> None:
        tensor = tensors[name]
        values = tensor.read(0, int(np.prod(tensor.info.shape[:-1]))).reshape(-1, shape[-1])

        def read(start: int, stop: int) -> NDArray[np.float32]:
            return values[start:stop]

        info = replace(tensor.info, shape=shape)
        tensors[name] = replace(tensor, info=info, read=read, read_raw=None)

    return change


def _typed(name: str, type: str) -> Change:
    def change(tensors: dict[str, OutputTensor]) -> None:
        tensor = tensors[name]
        tensors[name] = replace(tensor, info=replace(tensor.info, type=type), read_raw=None)

    return change


BROKEN: dict[str, Mutation] = {
    "no tensor `v.conv_stem.conv.weight`": mmproj(without("v.conv_stem.conv.weight")),
    "no tensor `v.blk.0.1.bn1.weight`": mmproj(without("v.blk.0.1.bn1.weight")),
    "no tensor `v.blk.3.0...`": mmproj(
        without("v.blk.3.0.dw_start.conv.weight", "v.blk.3.0.pw_exp.conv.weight")
    ),
    "no tensor `v.blk.2.0.dw_mid.conv.weight`": mmproj(without("v.blk.2.0.dw_mid.conv.weight")),
    "no tensor `v.blk.2.2.attn.value.down_conv.weight`": mmproj(
        without("v.blk.2.2.attn.value.down_conv.weight")
    ),
    "no tensor `v.blk.2.2.attn.output.proj.weight`": mmproj(
        without("v.blk.2.2.attn.output.proj.weight")
    ),
    "no tensor `v.msfa.norm.weight`": mmproj(without("v.msfa.norm.weight")),
    f"no tensor `{_SOFT}`": mmproj(without(_SOFT)),
    # As llama.cpp's own converter writes it.
    "tensor `v.blk.1.0.layer_scale.gamma` has the shape [24]": mmproj(
        _shaped("v.blk.1.0.layer_scale.gamma", (24,))
    ),
    "tensor `v.blk.1.1.pw_exp.conv.weight`": mmproj(
        instead("v.blk.1.1.pw_exp.conv.weight", "v.blk.1.0.pw_exp.conv.weight")
    ),
    "tensor `v.blk.2.2.attn.value.proj.weight`": mmproj(
        instead("v.blk.2.2.attn.value.proj.weight", "v.blk.2.1.pw_proj.conv.weight")
    ),
    f"tensor `{_END}`": mmproj(instead(_END, "v.blk.0.0.bn1.weight")),
    "`v.blk.1.0.dw_mid.conv.weight` as F32": mmproj(_typed("v.blk.1.0.dw_mid.conv.weight", "F32")),
    "`v.blk.1.0.pw_exp.conv.weight` as BF16": mmproj(
        _typed("v.blk.1.0.pw_exp.conv.weight", "BF16")
    ),
    "`v.blk.1.0.layer_scale.gamma` as F16": mmproj(_typed("v.blk.1.0.layer_scale.gamma", "F16")),
    "images of 500 pixels": _number("image_size", 500),
    "images of 65536 pixels": _number("image_size", 65536),
    "a patch_size of 3": _number("patch_size", 3),
    "rows of 32 values from 64": _number("embedding_length", 64),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("gemma3n", tmp_path_factory.mktemp("gemma3n")), outtype="f32")


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    check_refused(BROKEN[blamed](plan), tmp_path, blamed)


@pytest.mark.parametrize(
    ("slides", "blamed"),
    [([False] * 22, "no sliding layer"), ([False, True] * 11, "keys of layers 18 and 19")],
)
def test_a_text_model_whose_shared_keys_nobody_keeps_is_refused(
    plan: ConversionPlan, tmp_path: Path, slides: list[bool], blamed: str
) -> None:
    key = "gemma3n.attention.sliding_window_pattern"
    broken = text(nothing, {key: array("BOOL", slides)})(plan)
    with pytest.raises(GGUFError, match=blamed):
        check_text_model(written(broken, tmp_path)[0])


def test_images_are_stretched_as_transformers_does() -> None:
    image = drawn_image("90x400-1")
    (found,) = EndedCanvas(side=256).cut(image)
    wanted = Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(wanted))
    square = drawn_image("256x256-1")
    assert EndedCanvas(side=256).cut(square)[0] is square


def test_what_ends_an_image_is_its_last_row(plan: ConversionPlan, tmp_path: Path) -> None:
    model, projector = written(plan, tmp_path)
    end = next(one for one in plan.mmproj.tensors if one.info.name == _END).read(0, 1)[0]
    with open_vlm(model=model, mmproj=projector, n_ctx=1024, device="cpu") as vlm:
        image = drawn_image("90x400-1")
        (rows,) = vlm.encode(image).tiles
        tokens = vlm.token_ids("What is it?", [image])
        assert vlm.count_visual_tokens(400, 90) == tokens.count(VISUAL_TOKEN) == len(rows) == 257
        np.testing.assert_array_equal(rows[-1], end)
        assert np.isfinite(rows).all()
        behind = tokens[len(tokens) - tokens[::-1].index(VISUAL_TOKEN) :]
        assert vlm.spelled(behind).startswith("\n\n")


def test_a_file_that_lacks_it_ends_images_with_a_token(
    plan: ConversionPlan, tmp_path: Path
) -> None:
    model, projector = written(mmproj(without(_END))(plan), tmp_path)
    span = check_projector(projector, check_text_model(model)[0])
    assert span.frame == ("", "")
    with open_vlm(model=model, mmproj=projector, n_ctx=1024, device="cpu") as vlm:
        tokens = vlm.token_ids("What is it?", [drawn_image("90x400-1")])
        assert tokens.count(VISUAL_TOKEN) == 256
        behind = tokens[len(tokens) - tokens[::-1].index(VISUAL_TOKEN) :]
        assert vlm.spelled(behind).startswith("<end_of_image>")


def test_keys_that_no_layer_reads_may_be_zeros(plan: ConversionPlan, tmp_path: Path) -> None:
    """As for checkpoints that transformers 5 saves."""

    emptied = both(
        *(values(f"blk.{layer}.attn_{name}", np.zeros_like) for layer in (20, 21) for name in "kv")
    )
    found: list[NDArray[np.float32]] = []
    for number, one in enumerate((plan, text(emptied)(plan))):
        folder = tmp_path / str(number)
        folder.mkdir()
        model, _ = written(one, folder)
        with open_vlm(model=model, n_ctx=256, device="cpu", n_threads=1) as vlm:
            found.append(vlm.first_logits("What is it?"))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_level_is_for_the_projection_alone(plan: ConversionPlan, tmp_path: Path) -> None:
    model, source = written(plan, tmp_path)
    target, image = tmp_path / "q8.gguf", "90x400-1"
    quantize_file(source, target, mmproj_encoder("Q8_0"))
    before, after = ({t.name: t.type for t in read_gguf(p).tensors} for p in (source, target))
    assert {name for name in after if after[name] != before[name]} == {"mm.input_projection.weight"}
    rows = [embeddings(model, path, image) for path in (source, target)]
    assert cosines(*rows).min() > 0.99


def test_the_memory_of_an_image_is_that_of_the_square(plan: ConversionPlan, tmp_path: Path) -> None:
    files = [read_gguf(path) for path in written(plan, tmp_path)]
    small, large = (
        predict_footprint(*files, n_ctx=1024, image_sizes=[size]).vision_compute
        for size in ((20, 20), (2000, 1000))
    )
    assert small == large
    # The block that is the largest: 144 channels of 64 x 64 pixels, each with 25 beside it.
    assert 30 << 20 < small < 60 << 20
