"""Our files in the runtime beside transformers' log-probabilities, with and without images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import TypedValue, array
from edgevlm_convert.plan import ConversionPlan, OuttypeOption
from edgevlm_convert.writer import GGUFPlan, OutputTensor, plan_gguf
from numpy.typing import NDArray

from edgevlm.runtime.vlm import VLM, open_vlm
from tests.goldens.files import GOLDENS, Case, drawn_image, read_reference

CASES = read_reference(GOLDENS / "qwen3_vl" / "reference.npz")
Change = Callable[[dict[str, OutputTensor]], None]
STRICT_BOUND, DEFAULT_BOUND = 1e-5, 1e-3
IMAGE_PAD = 297


def kld(vlm: VLM, case: Case) -> NDArray[np.float64]:
    """Return KLD(transformers, ours) at each position of a case's answer."""
    images = [drawn_image(name) for name in case.images]
    answer = [int(token) for token in case.answer]
    ours = log_softmax(vlm.answer_logits(case.prompt, images, answer=answer))
    ours = np.take_along_axis(ours, case.top_ids.astype(np.int64), axis=1)
    theirs = case.top_logprobs.astype(np.float64)
    return (np.exp(theirs) * (theirs - ours)).sum(axis=1)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def written(plan: ConversionPlan, folder: Path) -> tuple[Path, Path]:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


@pytest.mark.parametrize(
    ("outtype", "strict", "bound"),
    [("f32", True, STRICT_BOUND), ("f16", False, DEFAULT_BOUND)],
)
def test_logits_are_transformers(
    golden_checkpoint: Path, tmp_path: Path, outtype: OuttypeOption, strict: bool, bound: float
) -> None:
    model, mmproj = written(plan_conversion(golden_checkpoint, outtype=outtype), tmp_path)
    with open_vlm(model=model, mmproj=mmproj, n_ctx=256, device="cpu", strict=strict) as vlm:
        for case in CASES:
            images = [drawn_image(name) for name in case.images]
            answer = [int(token) for token in case.answer]
            logits = vlm.answer_logits(case.prompt, images, answer=answer)
            assert logits.argmax(axis=1).tolist() == case.top_ids[:, 0].tolist(), case.name
            assert kld(vlm, case).max() <= bound, case.name


def test_token_ids_are_those_of_transformers_processor(
    golden_checkpoint: Path, tmp_path: Path
) -> None:
    model, mmproj = written(plan_conversion(golden_checkpoint), tmp_path)
    with open_vlm(model=model, mmproj=mmproj, n_ctx=256, device="cpu") as vlm:
        for case in CASES:
            ids = vlm.token_ids(case.prompt, [drawn_image(name) for name in case.images])
            # The runtime has no id for a visual token: a negative number stands for it.
            assert [
                IMAGE_PAD if number < 0 else number for number in ids
            ] == case.input_ids.tolist()


def test_the_golden_can_see() -> None:
    first, other = (
        next(case for case in CASES if case.name == name) for name in ("one image", "another image")
    )
    logprobs = np.zeros((2, first.top_ids.shape[1]))
    for row, case in zip(logprobs, (first, other), strict=True):
        row[case.top_ids[0]] = case.top_logprobs[0]
    assert float((np.exp(logprobs[0]) * (logprobs[0] - logprobs[1])).sum()) >= 1e-2


def _with_tensors(
    plan: GGUFPlan, change: Change, metadata: Mapping[str, TypedValue] | None
) -> GGUFPlan:
    """Return a plan whose tensors, by name, were changed."""
    tensors = {tensor.info.name: tensor for tensor in plan.tensors}
    change(tensors)
    values: dict[str, TypedValue] = {**plan.metadata, **(metadata or {})}
    renamed = [
        replace(tensor, info=replace(tensor.info, name=name)) for name, tensor in tensors.items()
    ]
    return plan_gguf(metadata=values, tensors=renamed)


def _swap(one: str, other: str) -> Change:
    """Exchange all tensors that differ only in `one` and `other`."""

    def change(tensors: dict[str, OutputTensor]) -> None:
        for name in [name for name in tensors if one in name]:
            twin = name.replace(one, other)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return change


def _same_frame(tensors: dict[str, OutputTensor]) -> None:
    tensors["v.patch_embd.weight.1"] = tensors["v.patch_embd.weight"]


def _no_output(tensors: dict[str, OutputTensor]) -> None:
    del tensors["output.weight"]


def _nothing(tensors: dict[str, OutputTensor]) -> None:
    del tensors


def _text(
    change: Change, metadata: Mapping[str, TypedValue] | None = None
) -> Callable[[ConversionPlan], ConversionPlan]:
    return lambda plan: replace(plan, text=_with_tensors(plan.text, change, metadata))


def _mmproj(
    change: Change, metadata: Mapping[str, TypedValue] | None = None
) -> Callable[[ConversionPlan], ConversionPlan]:
    return lambda plan: replace(plan, mmproj=_with_tensors(plan.mmproj, change, metadata))


MUTATIONS: Mapping[str, Callable[[ConversionPlan], ConversionPlan]] = {
    "one frame of the patch kernel twice": _mmproj(_same_frame),
    "deepstack by number, not by layer": _mmproj(_swap("v.deepstack.1.", "v.deepstack.3.")),
    "merger norms exchanged": _mmproj(_swap("ln1.", "ln2.")),
    "vision norm of the last layer as merger norm": _mmproj(_swap("v.blk.3.ln1.", "v.post_ln.")),
    "pixels normalized as usual": _mmproj(
        _nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
    "tied though it is not": _text(_no_output),
    "head norms exchanged": _text(_swap("attn_q_norm", "attn_k_norm")),
    "layer norms exchanged": _text(_swap("attn_norm", "ffn_norm")),
    "gate and up exchanged": _text(_swap("ffn_gate", "ffn_up")),
    "rotary sections in another order": _text(
        _nothing, {"qwen3vl.rope.dimension_sections": array("INT32", [8, 3, 5, 0])}
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_leaving_out_one_transform_breaks_the_bound_tenfold(
    golden_checkpoint: Path, tmp_path: Path, mutation: str
) -> None:
    plan = MUTATIONS[mutation](plan_conversion(golden_checkpoint, outtype="f32"))
    model, mmproj = written(plan, tmp_path)
    with open_vlm(model=model, mmproj=mmproj, n_ctx=256, device="cpu", strict=True) as vlm:
        worst = max(float(kld(vlm, case).max()) for case in CASES)
    assert worst > 10 * STRICT_BOUND
