"""Qwen3-VL and Qwen3.5: every published size over shapes alone, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.published_qwen3 import PUBLISHED, Form, tensor_shapes
from tests.convert.tricks import error_of
from tests.goldens.files import GOLDENS, read_golden_json, redraw
from tests.goldens.qwen3_checkpoints import rewrite
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes

# As the Hub counts them in the safetensors files: a slip in the numbers would show.
N_PARAMETERS: Mapping[str, int] = {
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
    "Qwen3-VL-30B-A3B": 31_070_754_032,
    "Qwen3-VL-235B-A22B": 235_670_022_896,
    "Qwen3.5-0.8B": 873_438_784,
    "Qwen3.5-2B": 2_274_069_824,
    "Qwen3.5-4B": 4_659_865_088,
    "Qwen3.5-9B": 9_653_104_368,
    "Qwen3.5-27B": 27_781_427_952,
    "Qwen3.5-35B-A3B": 35_951_822_704,
    "Qwen3.5-122B-A10B": 125_086_497_008,
    "Qwen3.5-397B-A17B": 403_397_928_944,
}
PREPROCESSOR: Config = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def mapped(folder: Path, config: Config, form: Form) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of the published size, whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, tensor_shapes(config, form))
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    assert family.name == config["model_type"]
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(PREPROCESSOR, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


def forms(name: str) -> list[Form]:
    """Return the forms that a size is published in, and saved in by transformers 5."""
    hybrid = "3.5" in name
    saved = Form(one_by_one=hybrid and PUBLISHED[name]["model_type"].endswith("_moe"))
    return [Form(transposed=not hybrid, mtp=hybrid), saved]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_taken(tmp_path: Path, name: str) -> None:
    config = PUBLISHED[name]
    published, saved = forms(name)
    shapes = tensor_shapes(config, published)
    assert sum(map(math.prod, shapes.values())) == N_PARAMETERS[name]
    layers = config["text_config"]["num_hidden_layers"]
    found: dict[Form, int] = {}
    for form in (published, saved):
        parts, ledger = mapped(tmp_path, config, form)
        assert set(ledger.used) == set(tensor_shapes(config, form))
        assert ledger.dropped == {}
        keys = {**parts["text"].metadata, **parts["text"].late_metadata}
        values: dict[str, Any] = {key: one.value for key, one in keys.items()}
        prefix = next(iter(values)).partition(".")[0]
        found[form] = values[f"{prefix}.block_count"]
        assert values[f"{prefix}.context_length"] == 262144
        assert values.get(f"{prefix}.nextn_predict_layers") == (1 if form.mtp else None)
        if form.mtp or prefix.startswith("qwen35"):
            linear = values[f"{prefix}.attention.recurrent_layers"]
            assert sum(linear) == layers * 3 // 4
            assert not any(linear[3::4])
            assert values[f"{prefix}.rope.dimension_count"] == 64
        mmproj = {**parts["mmproj"].metadata, **parts["mmproj"].late_metadata}
        width = config["text_config"]["hidden_size"]
        assert mmproj["clip.vision.projection_dim"].value == width
    assert found == {published: layers + published.mtp, saved: layers}


@pytest.mark.parametrize(
    ("golden", "form"),
    [
        ("qwen3_vl", Form()),
        ("qwen3_vl_moe", Form()),
        ("qwen3_5", Form(mtp=True)),
        ("qwen3_5_small", Form()),
        ("qwen3_5_moe", Form(one_by_one=True)),
    ],
)
def test_shapes_are_those_that_transformers_saves(golden: str, form: Form) -> None:
    config = read_golden_json(GOLDENS / golden / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / golden / "weights.json")["tensors"]
    shapes = {key: tuple(shape) for key, (shape, _) in stored.items()}
    if not form.mtp:
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("mtp.")}
    assert shapes == tensor_shapes(config, form)


def test_experts_of_an_mtp_layer_may_be_one_by_one(tmp_path: Path) -> None:
    config = PUBLISHED["Qwen3.5-35B-A3B"]
    _, ledger = mapped(tmp_path, config, Form(mtp=True))
    prefix = "mtp.layers.0.mlp.experts."
    names = {
        target for name in ledger.used if name.startswith(prefix) for target in ledger.used[name]
    }
    assert names == {f"blk.40.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("qwen3_5", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen3_5", {"attention_bias": True}, "attention_bias"),
    ("qwen3_5", {"attn_output_gate": False}, "attn_output_gate"),
    ("qwen3_5", {"linear_value_head_dim": 32}, "linear_value_head_dim"),
    ("qwen3_5", {"linear_num_value_heads": 5}, "linear_num_value_heads"),
    ("qwen3_5", {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim"),
    ("qwen3_5", {"layer_types": ["linear_attention"] * 4}, "layer_types"),
    ("qwen3_5", {"layer_types": ["sliding_attention"] * 5}, "layer_types"),
    ("qwen3_5_small", {"full_attention_interval": 0}, "full_attention_interval"),
    ("qwen3_5_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    ("qwen3_5_moe", {"num_experts": 2000}, "num_experts"),
    ("qwen3_5_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ("qwen3_vl_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("qwen3_vl_moe", {"moe_intermediate_size": 0}, "moe_intermediate_size"),
]


@pytest.mark.parametrize(("golden", "changes", "key"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(
    tmp_path: Path, golden: str, changes: dict[str, object], key: str
) -> None:
    folder = redraw(golden, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= changes
    write_json(folder / "config.json", config)
    error = error_of(folder)
    assert isinstance(error, CheckpointError)
    assert key in error.message


def test_a_rotary_factor_that_leaves_an_odd_number_is_refused(tmp_path: Path) -> None:
    folder = redraw("qwen3_5", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["rope_parameters"]["partial_rotary_factor"] = 0.3
    write_json(folder / "config.json", config)
    assert "partial_rotary_factor" in error_of(folder).message


def test_another_epsilon_is_said(tmp_path: Path) -> None:
    folder = redraw("qwen3_5", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert not plan_conversion(folder).losses
    config["text_config"]["rms_norm_eps"] = 1e-5
    write_json(folder / "config.json", config)
    assert "linear attention" in " ".join(plan_conversion(folder).losses)


def test_an_mtp_layer_that_is_not_whole_is_named(tmp_path: Path) -> None:
    folder = redraw("qwen3_5", tmp_path / "checkpoint")
    rewrite(
        folder, lambda weights: {key: weights[key] for key in weights if key != "mtp.fc.weight"}
    )
    with pytest.raises(ConversionError, match=r"mtp\.fc\.weight"):
        plan_conversion(folder)
