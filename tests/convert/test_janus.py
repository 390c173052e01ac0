"""Janus-Pro and DeepSeek-VL: published configurations, what is left out, and what is refused.

No hub was at hand: the published sizes are put together from the classes' defaults, the models'
papers and memory.
"""

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
from edgevlm_convert.family import Part, Source

from edgevlm.errors import CheckpointError
from tests.convert.tricks import drop_tensor, rename_tensors
from tests.goldens.files import read_golden_json

Golden = Callable[[str], Path]
Config = dict[str, Any]
BOTH = ("janus", "deepseek_vl")
_PIXELS: Config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_TOWER = {"hidden_size": 1024, "image_size": 384, "num_attention_heads": 16, "patch_size": 16}


def _text(width: int, n_ff: int, n_layers: int, n_heads: int) -> Config:
    return {
        "hidden_size": width,
        "intermediate_size": n_ff,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": n_heads,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": n_heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": 102400,
    }


def _janus(text: Config) -> Config:
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "image_token_id": 100581,
        "model_type": "janus",
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": {
            **_TOWER,
            "hidden_act": "gelu",
            "mlp_ratio": 4.0,
            "model_type": "janus_vision_model",
            "num_hidden_layers": 24,
            "projection_dim": text["hidden_size"],
        },
    }


PUBLISHED: dict[str, Config] = {
    "Janus-Pro-1B": _janus(_text(2048, 5632, 24, 16)),
    "Janus-Pro-7B": _janus(_text(4096, 11008, 30, 32)),
    "DeepSeek-VL-1.3B": {
        "architectures": ["DeepseekVLForConditionalGeneration"],
        "image_token_id": 100015,
        "model_type": "deepseek_vl",
        "text_config": _text(2048, 5632, 24, 16),
        "tie_word_embeddings": False,
        "vision_config": {
            **_TOWER,
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": 4096,
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 24,
        },
    },
}


def _count(part: Part) -> int:
    return sum(
        math.prod(shape or ())
        for rule in part.rules
        if rule.required
        for shape in rule.shapes.values()
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_taken(name: str) -> None:
    config = Section(PUBLISHED[name], file="config.json")
    family = find_family(config)
    text_model, text = find_text_model(family, config)
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(_PIXELS, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    language, vision = text_model.build(source), family.projector.build(source)
    sizes = PUBLISHED[name]["text_config"]
    width, n_ff = sizes["hidden_size"], sizes["intermediate_size"]
    layer = 4 * width * width + 3 * width * n_ff + 2 * width
    assert _count(language) == 2 * 102400 * width + sizes["num_hidden_layers"] * layer + width
    block = 4 * 1024 * 1025 + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    tower = 24 * block + 1024 * (3 * 16 * 16 + 1) + 576 * 1024 + 2 * 1024
    assert _count(vision) == tower + width * (1024 + 1) + width * (width + 1)
    keys: Config = {key: value.value for key, value in vision.late_metadata.items()}
    assert keys["clip.vision.feed_forward_length"] == 4096
    assert keys["clip.use_gelu"] is True
    assert language.losses == vision.losses == ()


@pytest.fixture(params=BOTH)
def checkpoint(request: pytest.FixtureRequest, golden: Golden, tmp_path: Path) -> Path:
    """A copy of either golden to change."""
    return Path(shutil.copytree(golden(request.param), tmp_path / "checkpoint"))


@pytest.fixture
def janus(golden: Golden, tmp_path: Path) -> Path:
    """A copy of Janus-Pro's golden to change."""
    return Path(shutil.copytree(golden("janus"), tmp_path / "checkpoint"))


def changed(checkpoint: Path, file: str, section: str, values: Config) -> Path:
    found = read_golden_json(checkpoint / file)
    (found[section] if section else found).update(values)
    (checkpoint / file).write_text(json.dumps(found), encoding="utf-8")
    return checkpoint


def test_what_draws_images_is_left_out_by_name(janus: Path) -> None:
    dropped = plan_conversion(janus).ledger.dropped
    assert len(dropped) > 100
    assert set(dropped.values()) == {"draws images: llama.cpp answers in text"}
    kinds = {name.split(".")[1] for name in dropped}
    assert kinds == {"vqmodel", "generation_embeddings", "generation_aligner", "generation_head"}


def test_a_checkpoint_without_it_is_taken_too(janus: Path) -> None:
    whole = plan_conversion(janus)
    single = janus / "model-00001-of-00001.safetensors"
    single.rename(janus / "model.safetensors")
    (janus / "model.safetensors.index.json").unlink()
    for name in whole.ledger.dropped:
        drop_tensor(janus, name)
    plan = plan_conversion(janus)
    assert plan.ledger.dropped == {}
    assert plan.n_bytes == whole.n_bytes


def test_names_without_the_outer_level(checkpoint: Path) -> None:
    new = plan_conversion(checkpoint)
    rename_tensors(checkpoint, lambda name: name.removeprefix("model."))
    old = plan_conversion(checkpoint)
    for one, other in ((old.mmproj, new.mmproj), (old.text, new.text)):
        assert {tensor.info for tensor in one.tensors} == {tensor.info for tensor in other.tensors}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_qk_norm", True),
        ("depth", 3),
        ("num_image_tokens", 35),
        ("projection_dim", 32),
        ("hidden_act", "relu"),
        ("mlp_ratio", 1.0),
        ("mlp_ratio", -1.0),
        ("num_channels", 1),
        ("num_attention_heads", 3),
    ],
)
def test_a_tower_that_the_graph_does_not_compute(janus: Path, key: str, value: object) -> None:
    blamed = "intermediate_size" if (key, value) == ("mlp_ratio", 1.0) else key
    with pytest.raises(CheckpointError, match=blamed) as caught:
        plan_conversion(changed(janus, "config.json", "vision_config", {key: value}))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("do_pad", False),
        ("resample", 2),
        ("size", {"height": 48, "width": 64}),
    ],
)
def test_pixels_that_the_runtime_makes_otherwise(checkpoint: Path, key: str, value: object) -> None:
    blamed = "width" if key == "size" else key
    with pytest.raises(CheckpointError, match=blamed) as caught:
        plan_conversion(changed(checkpoint, "preprocessor_config.json", "", {key: value}))
    assert caught.value.hint


def test_another_color_beside_an_image_is_a_loss(checkpoint: Path) -> None:
    (loss,) = plan_conversion(checkpoint).losses
    assert "not square" in loss
    assert "[127, 114, 102]" in loss
    changed(checkpoint, "preprocessor_config.json", "", {"image_mean": [0.5] * 3})
    assert plan_conversion(checkpoint).losses == ()
