"""GLM-OCR, GLM-4.1V, GLM-4.5V: published sizes over shapes alone, what is left out, refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError, ConversionError, UnsupportedArchitectureError
from tests.convert.published_glm import PUBLISHED, predictor_shapes, tensor_shapes
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.qwen3_checkpoints import Weights, rewrite
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes
from tests.tokenizers.parts import token_ids

PREPROCESSOR: Config = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "merge_size": 2,
    "patch_size": 14,
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    "temporal_patch_size": 2,
}
# GLM-OCR's as counted in its file; the others' are sums of their shapes, and of the right size.
N_PARAMETERS: Mapping[str, tuple[int, int]] = {
    "GLM-OCR": (526, 1_325_258_240),
    "GLM-4.1V-9B": (704, 10_292_777_472),
    "GLM-4.5V": (18106, 107_710_933_120),
}
Change = Callable[[Config], object]


def mapped(folder: Path, config: Config) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of a published size, whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, tensor_shapes(config))
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_taken(tmp_path: Path, name: str) -> None:
    config = PUBLISHED[name]
    shapes = tensor_shapes(config)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == N_PARAMETERS[name]
    parts, ledger = mapped(tmp_path, config)
    stem = "model.language_model.layers.16."
    is_ocr = name == "GLM-OCR"
    assert set(ledger.dropped) == {key for key in shapes if is_ocr and key.startswith(stem)}
    keys = {**parts["text"].metadata, **parts["text"].late_metadata}
    values: dict[str, Any] = {key: one.value for key, one in keys.items()}
    prefix = "glm4moe" if name == "GLM-4.5V" else "glm4"
    assert values[f"{prefix}.block_count"] == config["text_config"]["num_hidden_layers"]
    assert values[f"{prefix}.rope.dimension_count"] == (128 if is_ocr else 64)
    sections = [16, 24, 24, 0] if is_ocr else [8, 12, 12, 0]
    assert list(values[f"{prefix}.rope.dimension_sections"]) == sections
    assert f"{prefix}.nextn_predict_layers" not in values
    mmproj = parts["mmproj"].late_metadata
    assert mmproj["clip.vision.image_min_pixels"].value == 8 * 28 * 28
    assert mmproj["clip.vision.image_max_pixels"].value == 6144 * 28 * 28


@pytest.mark.parametrize("golden", ["glm_ocr", "glm4v"])
def test_shapes_are_those_that_transformers_saves(golden: str) -> None:
    config = read_golden_json(GOLDENS / golden / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / golden / "weights.json")["tensors"]
    assert {key: tuple(shape) for key, (shape, _) in stored.items()} == tensor_shapes(config)


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of a golden to change."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(golden(name), tmp_path / name))

    return copied


def changed(folder: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(folder / file)
    change(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_a_layer_for_multi_token_prediction_is_left_out(
    checkpoint: Callable[[str], Path],
) -> None:
    folder = checkpoint("glm_ocr")
    without = plan_conversion(folder)
    changed(folder, lambda values: values["text_config"].update(num_nextn_predict_layers=1))
    # A fine-tune saved by transformers names the layer and does not have it.
    assert list(plan_conversion(folder).text.metadata) == list(without.text.metadata)
    text = read_golden_json(folder / "config.json")["text_config"]
    prefix = "model.language_model.layers.3."

    def with_layer(weights: Weights) -> Weights:
        model = "model.language_model.layers.2."
        copied = {
            name.replace(model, prefix): entry for name, entry in weights.items() if model in name
        }
        more = {
            name: ("F32", shape, np.zeros(shape, np.float32).tobytes())
            for name, shape in predictor_shapes(prefix, text).items()
        }
        return {**weights, **copied, **more}

    rewrite(folder, with_layer)
    plan = plan_conversion(folder)
    assert {tensor.info.name for tensor in plan.text.tensors} == {
        tensor.info.name for tensor in without.text.tensors
    }
    assert len(plan.ledger.dropped) == 10 + 6
    assert all(name.startswith(prefix) for name in plan.ledger.dropped)
    assert all("multi-token prediction" in reason for reason in plan.ledger.dropped.values())
    # Where the configuration does not name it, it is a tensor too many.
    changed(folder, lambda values: values["text_config"].pop("num_nextn_predict_layers"))
    with pytest.raises(ConversionError, match=r"layers\.3\."):
        plan_conversion(folder)


def test_the_next_turn_ends_an_answer_in_every_runtime(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("glm_ocr")
    keys = plan_conversion(folder).text.metadata
    assert keys["tokenizer.ggml.eot_token_id"].value == token_ids(folder)["<|user|>"]


@pytest.mark.parametrize(
    ("name", "section", "changes", "key"),
    [
        ("glm4v", "text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("glm4v", "text_config", {"head_dim": 32}, "head_dim"),
        ("glm4v", "vision_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("glm4v", "vision_config", {"spatial_merge_size": 3}, "spatial_merge_size"),
        ("glm4v", "vision_config", {"temporal_patch_size": 1}, "temporal_patch_size"),
        ("glm4v", "vision_config", {"out_hidden_size": 64}, "out_hidden_size"),
        ("glm4v", "vision_config", {"image_size": [40, 40]}, "image_size"),
        ("glm_ocr", "vision_config", {"num_heads": 8}, "num_heads"),
        ("glm_ocr", "text_config", {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
        ("glm46v", "text_config", {"partial_rotary_factor": 0.3}, "partial_rotary_factor"),
    ],
    ids=str,
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(
    checkpoint: Callable[[str], Path], name: str, section: str, changes: Config, key: str
) -> None:
    folder = changed(checkpoint(name), lambda values: values[section].update(changes))
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"mrope_section": [4, 6, 4]}, "mrope_section"),
        ({"mrope_section": [4, 6, 6, 0]}, "mrope_section"),
        ({"mrope_interleaved": True}, "mrope_interleaved"),
        ({"rope_type": "llama3", "factor": 2.0}, "rope_type"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor"),
    ],
    ids=str,
)
def test_rotary_settings_that_llama_cpp_has_others_of(
    checkpoint: Callable[[str], Path], changes: Config, key: str
) -> None:
    folder = checkpoint("glm_ocr")
    changed(folder, lambda values: values["text_config"]["rope_parameters"].update(changes))
    with pytest.raises(CheckpointError, match=key):
        plan_conversion(folder)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
        ({"merge_size": 4}, "merge_size"),
        ({"patch_size": 14}, "patch_size"),
        ({"temporal_patch_size": 1}, "temporal_patch_size"),
        ({"size": {"longest_edge": 100}}, "longest_edge"),
        ({"size": {"longest_edge": 1 << 40}}, "longest_edge"),
        ({"size": {"shortest_edge": 1 << 30, "longest_edge": 1 << 20}}, "shortest_edge"),
    ],
    ids=str,
)
def test_pixels_that_the_runtime_makes_otherwise(
    checkpoint: Callable[[str], Path], changes: Config, key: str
) -> None:
    folder = changed(
        checkpoint("glm4v"), lambda values: values.update(changes), "preprocessor_config.json"
    )
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"n_group": 2}, "n_group"),
        ({"topk_group": 2}, "topk_group"),
        ({"n_shared_experts": 0}, "n_shared_experts"),
        ({"n_routed_experts": 1}, "n_routed_experts"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
    ids=str,
)
def test_experts_that_llama_cpp_does_not_choose(
    checkpoint: Callable[[str], Path], changes: Config, key: str
) -> None:
    folder = checkpoint("glm4v_moe")
    changed(folder, lambda values: values["text_config"].update(changes))
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(folder)
    assert caught.value.hint


def test_the_class_of_glm_46v_takes_experts_too(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("glm4v_moe")
    names = [tensor.info.name for tensor in plan_conversion(folder).text.tensors]
    changed(folder, lambda values: values.update(architectures=["Glm46VForConditionalGeneration"]))
    assert [tensor.info.name for tensor in plan_conversion(folder).text.tensors] == names


def test_another_text_model_is_refused_by_name(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("glm46v")
    changed(folder, lambda values: values["text_config"].update(model_type="glm5_next_text"))
    with pytest.raises(UnsupportedArchitectureError, match="glm5_next_text") as caught:
        plan_conversion(folder)
    assert "glm4v_text" in caught.value.hint
