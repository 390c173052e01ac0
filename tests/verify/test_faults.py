"""Faults planted in converted files: each is found at its own stage, with its cause in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from edgevlm_convert.metadata import Value, array, boolean, f32, string
from edgevlm_convert.plan import ConversionPlan
from numpy.typing import NDArray

from edgevlm.verify.embeddings import EMBEDDINGS
from edgevlm.verify.logits import IMAGE_LOGITS, TEXT_LOGITS
from edgevlm.verify.pixels import PIXELS
from edgevlm.verify.report import Stage
from edgevlm.verify.tokens import TOKENS
from tests.convert.mutations import (
    Mutation,
    both,
    instead,
    mmproj,
    nothing,
    swap,
    text,
    unpaired,
    values,
)
from tests.goldens.recipes.gemma3 import transposed
from tests.verify.converted import Golden, by_name, verified

ORDER = (TOKENS, PIXELS, EMBEDDINGS, TEXT_LOGITS, IMAGE_LOGITS)
_NOT_PERMUTED = text(
    both(values("attn_q.weight", unpaired(6)), values("attn_k.weight", unpaired(2)))
)
_GATE_AND_UP = text(swap("ffn_gate", "ffn_up"))
_GROSS = ("query and key rows", "rotary base", "gate and up")
_SMALL = ("a little off", "epsilon")


def _next_row(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(table, 1, axis=0)


def _half(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.float32(2)


def _vision_epsilon(value: float) -> Mutation:
    return mmproj(nothing, {"clip.vision.attention.layer_norm_epsilon": f32(value)})


def _text_key(suffix: str, value: float) -> Mutation:
    def fault(plan: ConversionPlan) -> ConversionPlan:
        keys = [key for key in plan.text.metadata if key.endswith(suffix)]
        assert keys
        return text(nothing, {key: f32(value) for key in keys})(plan)

    return fault


def _reversed_merges(plan: ConversionPlan) -> ConversionPlan:
    key = "tokenizer.ggml.merges"
    merges = cast(Sequence[str], cast(Value, plan.text.metadata[key]).value)
    return text(nothing, {key: array("STRING", merges[::-1])})(plan)


def _template(plan: ConversionPlan) -> ConversionPlan:
    key = "tokenizer.chat_template"
    template = str(cast(Value, plan.text.metadata[key]).value)
    return text(nothing, {key: string(template.replace("assistant", "bot"))})(plan)


FAULTS: list[tuple[str, str, Mutation, str, tuple[str, ...]]] = [
    ("smolvlm", "query and key not permuted", _NOT_PERMUTED, TEXT_LOGITS, _GROSS),
    ("llava_clip_llama", "query and key not permuted", _NOT_PERMUTED, TEXT_LOGITS, _GROSS),
    (
        "llava_clip_llama",
        "position table not rotated",
        mmproj(values("v.position_embd", _next_row)),
        EMBEDDINGS,
        ("rotation of the position table",),
    ),
    (
        "gemma3",
        "position table by columns",
        mmproj(values("v.position_embd", transposed)),
        EMBEDDINGS,
        ("position table",),
    ),
    (
        "qwen3_vl",
        "one frame of the patch kernel twice",
        mmproj(instead("v.patch_embd.weight.1", "v.patch_embd.weight")),
        EMBEDDINGS,
        ("patch kernel",),
    ),
    (
        "smolvlm",
        "projector half as large",
        mmproj(values("mm.model.fc.weight", _half)),
        EMBEDDINGS,
        ("points the same way and is 0.5 times as long",),
    ),
    (
        "qwen3_vl",
        "another mean",
        mmproj(nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}),
        PIXELS,
        ("image_mean", "green x 1 -0.2", "blue x 1 -0.3333"),
    ),
    (
        "smolvlm",
        "another deviation",
        mmproj(nothing, {"clip.vision.image_std": array("FLOAT32", [0.5] * 3)}),
        PIXELS,
        ("image_std", "green x 0.5 +0", "blue x 0.6 +0"),
    ),
    (
        "gemma3",
        "a mean off by a quarter of a step",
        mmproj(nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5, 0.451, 0.4])}),
        PIXELS,
        ("green x 1 -0.004",),
    ),
    ("qwen2_5_vl", "epsilon of the tower", _vision_epsilon(1e-5), EMBEDDINGS, _SMALL),
    ("gemma3", "epsilon of the tower", _vision_epsilon(1e-6), EMBEDDINGS, _SMALL),
    ("llava_clip_llama", "epsilon of the tower", _vision_epsilon(1e-6), EMBEDDINGS, _SMALL),
    ("gemma3", "epsilon of the text", _text_key("rms_epsilon", 1e-5), TEXT_LOGITS, _SMALL),
    (
        "llava_clip_llama",
        "epsilon of the text",
        _text_key("rms_epsilon", 1e-6),
        TEXT_LOGITS,
        _SMALL,
    ),
    ("qwen3_vl", "gate and up exchanged", _GATE_AND_UP, TEXT_LOGITS, _GROSS),
    ("gemma3", "gate and up exchanged", _GATE_AND_UP, TEXT_LOGITS, _GROSS),
    ("qwen2_5_vl", "rotary base", _text_key("rope.freq_base", 10000.0), TEXT_LOGITS, _GROSS),
    ("gemma3", "rotary base", _text_key("rope.freq_base", 10000.0), TEXT_LOGITS, _GROSS),
    (
        "qwen2_vl",
        "rotary sections",
        text(nothing, {"qwen2vl.rope.dimension_sections": array("INT32", [6, 4, 6, 0])}),
        IMAGE_LOGITS,
        ("M-RoPE sections",),
    ),
    ("qwen3_vl", "merges in another order", _reversed_merges, TOKENS, ("cut in another way",)),
    (
        "llava_clip_llama",
        "no BOS",
        text(nothing, {"tokenizer.ggml.add_bos_token": boolean(False)}),
        TOKENS,
        ("begins differently",),
    ),
    ("qwen3_vl", "another chat template", _template, TOKENS, ("chat template",)),
]


@pytest.mark.parametrize(
    ("name", "fault", "stage", "words"),
    [(name, fault, stage, words) for name, _, fault, stage, words in FAULTS],
    ids=[f"{name}: {what}" for name, what, *_ in FAULTS],
)
def test_a_fault_fails_at_its_own_stage(
    golden: Golden, tmp_path: Path, name: str, fault: Mutation, stage: str, words: tuple[str, ...]
) -> None:
    report = verified(golden(name), tmp_path, reference=name, fault=fault)
    stages = by_name(report)
    assert report.verdict == "fail"
    failed = stages[stage]
    assert failed.status == "fail", failed.summary
    for word in words:
        assert word in failed.cause
    for one in ORDER:
        if one != stage:
            assert _is_clean(stages[one], behind=stage), stages[one]


def _is_clean(stage: Stage, *, behind: str) -> bool:
    """Whether a stage passed, was not asked, or says that it follows from the one that failed."""
    if stage.status in ("pass", "not checked"):
        return not stage.cause
    return f"follows from `{behind}`" in stage.cause


def test_a_16_bit_file_shows_gross_faults_as_well(golden: Golden, tmp_path: Path) -> None:
    report = verified(
        golden("qwen3_vl"), tmp_path, reference="qwen3_vl", outtype="bf16", fault=_GATE_AND_UP
    )
    assert by_name(report)[TEXT_LOGITS].status == "fail"


def test_an_adapter_that_was_not_merged(golden: Golden, tmp_path: Path) -> None:
    """The golden `adapter` is `qwen3_vl` with a LoRA: here held against the model without it."""
    stages = by_name(verified(golden("qwen3_vl"), tmp_path, reference="adapter"))
    assert stages[TOKENS].status == stages[PIXELS].status == "pass"
    assert stages[EMBEDDINGS].status == stages[TEXT_LOGITS].status == "fail"


def test_no_numbers_fail(golden: Golden, tmp_path: Path) -> None:
    def broken(norm: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full_like(norm, np.nan)

    tower = mmproj(values("v.post_ln.weight", broken))
    stages = by_name(verified(golden("gemma3"), tmp_path, reference="gemma3", fault=tower))
    assert stages[EMBEDDINGS].status == "fail"
    assert "no numbers" in stages[EMBEDDINGS].summary
    assert stages[IMAGE_LOGITS].status == "fail"
    decoder = text(values("output_norm.weight", broken))
    (tmp_path / "text").mkdir()
    report = verified(golden("gemma3"), tmp_path / "text", reference="gemma3", fault=decoder)
    assert by_name(report)[TEXT_LOGITS].status == "fail"
