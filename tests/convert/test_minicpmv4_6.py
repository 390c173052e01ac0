"""MiniCPM-V 4.6: the published configuration, both modes, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source

from edgevlm.errors import CheckpointError, ConversionError
from tests.goldens.files import read_golden_json
from tests.tokenizers.minicpm import MINICPM_LAST

Config = dict[str, Any]
Change = Callable[[Config], object]
# As openbmb/MiniCPM-V-4.6 has it.
PUBLISHED: Config = {
    "architectures": ["MiniCPMV4_6ForConditionalGeneration"],
    "drop_vision_last_layer": False,
    "image_size": 1120,
    "image_token_id": 248056,
    "insert_layer_id": 6,
    "model_type": "minicpmv4_6",
    "text_config": {
        "attention_bias": False,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_5_text",
        "num_attention_heads": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "vocab_size": 248094,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-6,
        "model_type": "minicpmv4_6_vision",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}


def test_the_published_configuration() -> None:
    config = Section(PUBLISHED, file="config.json")
    family = find_family(config)
    text_model, text = find_text_model(family, config)
    preprocessor = Section({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, file="p.json")
    source = Source(config=config, text=text, preprocessor=preprocessor, prefixes=family.prefixes)
    parts = text_model.build(source), family.projector.build(source)
    counts = [
        sum(math.prod(shape or ()) for rule in part.rules if rule.required
            for shape in rule.shapes.values())
        for part in parts
    ]  # fmt: skip
    width, n_ff = 1152, 4304
    block = 4 * width * (width + 1) + 2 * width * n_ff + n_ff + width + 4 * width
    tower = 27 * block + (3 * 14**2 + 1) * width + 4900 * width + 2 * width
    inner = 4 * width * (width + 1) + 2 * width + 8 * width
    inner += 2 * 4 * width * 4 * n_ff - 3 * 4 * width * n_ff + 4 * n_ff + width
    outer = 8 * width + 4 * width * (4 * width + 1) + 1024 * (4 * width + 1)
    assert counts[1] == tower + inner + outer
    # Qwen3.5-0.8B's text model, with 226 tokens less.
    assert counts[0] == 752_393_024 - (248_320 - 248_094) * 1024
    keys: Config = {key: value.value for key, value in parts[1].late_metadata.items()}
    assert keys["clip.vision.image_size"] == 448
    assert list(keys["clip.vision.wa_layer_indexes"]) == [6]
    assert keys["clip.vision.projector.scale_factor"] == 4


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("minicpmv4_6"), tmp_path / "checkpoint"))


def changed(checkpoint: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(checkpoint / file)
    change(values)
    (checkpoint / file).write_text(json.dumps(values), encoding="utf-8")
    return checkpoint


def test_patches_that_are_merged_behind_the_tower_alone(checkpoint: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        changed(checkpoint, lambda values: values.update(downsample_mode="4x"), file)
    plan = plan_conversion(checkpoint)
    assert plan.mmproj.metadata["clip.vision.projector.scale_factor"].value == 2
    dropped = set(plan.ledger.dropped)
    assert all("vit_merger." in name for name in dropped)
    assert len(dropped) == 16
    assert not any("vit_merger" in tensor.info.name for tensor in plan.mmproj.tensors)


def test_minicpm_ocr_merges_behind_the_tower_where_nothing_says_so(
    golden: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(golden("minicpm_ocr"), tmp_path / "ocr"))
    assert "downsample_mode" not in read_golden_json(checkpoint / "config.json")
    changed(checkpoint, lambda values: values.pop("downsample_mode"), "preprocessor_config.json")
    plan = plan_conversion(checkpoint)
    assert plan.family == "minicpmv4_6"
    assert plan.mmproj.metadata["clip.vision.projector.scale_factor"].value == 2
    assert len(plan.ledger.dropped) == 16
    changed(checkpoint, lambda values: values.update(downsample_mode="16x"))
    assert plan_conversion(checkpoint).ledger.dropped == {}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "image_size", 69 * 2),
        ("vision_config", "window_kernel_size", [4, 4]),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "num_channels", 1),
        (None, "downsample_mode", "8x"),
        (None, "downsample_mode", "4x"),
        (None, "merge_kernel_size", [4, 4]),
        (None, "merger_times", 2),
        (None, "drop_vision_last_layer", True),
        (None, "insert_layer_id", 4),
        (None, "insert_layer_id", -1),
    ],
)
def test_a_tower_that_the_graph_does_not_compute(
    checkpoint: Path, section: str | None, key: str, value: Any
) -> None:
    def change(config: Config) -> None:
        (config[section] if section else config)[key] = value

    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(changed(checkpoint, change))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("resample", 2),
        ("scale_resolution", 25),
        ("scale_resolution", 4),
        ("downsample_mode", "4x"),
    ],
)
def test_pixels_that_the_runtime_makes_otherwise(checkpoint: Path, key: str, value: Any) -> None:
    changed(checkpoint, lambda values: values.update({key: value}), "preprocessor_config.json")
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(checkpoint)
    assert caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        {"use_image_id": False},
        {"slice_mode": False},
        {"max_slice_nums": 36},
        {"small_image_upsize": "adaptive"},
    ],
    ids=str,
)
def test_image_settings_that_the_runtime_has_others_of(checkpoint: Path, setting: Config) -> None:
    usual = plan_conversion(checkpoint).losses
    changed(checkpoint, lambda values: values.update(setting), "preprocessor_config.json")
    (loss,) = set(plan_conversion(checkpoint).losses) - set(usual)
    ((key, value),) = setting.items()
    assert f"{key} {value}" in loss


def test_another_epsilon_than_that_of_the_last_norm(checkpoint: Path) -> None:
    changed(checkpoint, lambda values: values["vision_config"].update(layer_norm_eps=1e-5))
    assert any("epsilon 1e-05" in loss for loss in plan_conversion(checkpoint).losses)


@pytest.mark.parametrize("token", MINICPM_LAST[:4])
def test_a_vocabulary_without_a_token_that_is_written(checkpoint: Path, token: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = checkpoint / file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f'"{token}"', '"<nothing>"'), encoding="utf-8")
    with pytest.raises(ConversionError, match="needs for images") as caught:
        plan_conversion(checkpoint)
    assert caught.value.hint
