"""Video-LLaVA: its image tower under every name, the one for videos left out, its own template.

No hub was at hand: the size is that of the defaults of transformers' `VideoLlavaConfig`, over
Vicuna 7B.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.families.video_llava import FAMILY
from edgevlm_convert.family import Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import map_tensors

from edgevlm.errors import ConversionError, UnsupportedArchitectureError
from edgevlm.runtime.template import BoundedTemplate
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.llava_checkpoints import OF_ITS_CLASSES, preprocessor, renamed, tensor_shapes
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes

Shapes = dict[str, tuple[int, ...]]
_VISION = "vision_tower."
_TOWERS = ("image_tower.", "video_tower.")
_PUBLISHED_NAMES = {tower: f"{tower}vision_model." for tower in _TOWERS}
_NAMES_OF_CLASSES = {
    **{old: new for old, new in OF_ITS_CLASSES.items() if old != _VISION},
    **{tower: f"model.{tower}" for tower in _TOWERS},
}
_PUBLISHED: Config = {
    "architectures": ["VideoLlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "video_llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "video_token_index": 32001,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def shapes_of(config: Config) -> Shapes:
    """Return every tensor that transformers saves, by name, and its shape."""
    shapes: Shapes = {}
    for name, shape in tensor_shapes(config).items():
        if name.startswith(_VISION):
            shapes |= {tower + name.removeprefix(_VISION): shape for tower in _TOWERS}
        else:
            shapes[name] = shape
    return shapes


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("video_llava"), tmp_path / "checkpoint"))


def test_shapes_are_those_that_transformers_saves() -> None:
    folder = GOLDENS / "video_llava"
    stored = read_golden_json(folder / "weights.json")["tensors"]
    config = read_golden_json(folder / "checkpoint" / "config.json")
    assert {name: tuple(shape) for name, (shape, _) in stored.items()} == shapes_of(config)


def test_what_reads_videos_is_left_out_by_name_and_said(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint)
    videos = {name: why for name, why in plan.ledger.dropped.items() if name[:5] == "video"}
    assert videos
    assert len(set(videos.values())) == 1
    assert not any(name.startswith("video_tower.") for name in plan.ledger.used)
    assert any(loss.startswith("videos") for loss in plan.losses)


def infos(plan: ConversionPlan) -> list[set[object]]:
    return [{tensor.info for tensor in part.tensors} for part in (plan.text, plan.mmproj)]


@pytest.mark.parametrize("names", [_PUBLISHED_NAMES, _NAMES_OF_CLASSES])
def test_other_names_of_the_same_tensors(checkpoint: Path, names: Mapping[str, str]) -> None:
    saved = plan_conversion(checkpoint)
    rename_tensors(checkpoint, lambda name: renamed(name, names))
    plan = plan_conversion(checkpoint)
    assert infos(plan) == infos(saved)
    assert len(plan.ledger.dropped) == len(saved.ledger.dropped)


def test_a_tensor_of_no_known_part_is_named(checkpoint: Path) -> None:
    old, new = "video_tower.post_layernorm.bias", "sound_tower.post_layernorm.bias"
    rename_tensors(checkpoint, lambda name: new if name == old else name)
    with pytest.raises(ConversionError, match=new):
        plan_conversion(checkpoint)


def test_another_tower_is_refused(checkpoint: Path) -> None:
    config = read_golden_json(checkpoint / "config.json")
    config["vision_config"]["model_type"] = "siglip_vision_model"
    write_json(checkpoint / "config.json", config)
    with pytest.raises(UnsupportedArchitectureError, match="siglip_vision_model"):
        plan_conversion(checkpoint)


def test_a_checkpoint_without_a_template_gets_that_of_its_documentation(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    keys = plan_conversion(checkpoint).text.metadata
    assert keys["tokenizer.chat_template"].value == FAMILY.chat_template
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Where?"},
    ]
    text = BoundedTemplate(FAMILY.chat_template).render(
        {"messages": turns, "add_generation_prompt": True, "eos_token": "</s>"}
    )
    assert text == (
        "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"
    )


def test_the_published_size_is_taken(tmp_path: Path) -> None:
    shapes = {renamed(name, _PUBLISHED_NAMES): one for name, one in shapes_of(_PUBLISHED).items()}
    # Vicuna 7B, two towers of 303 million, two layers: 7.4 billion.
    assert 7.3e9 < sum(map(math.prod, shapes.values())) < 7.5e9
    write_json(tmp_path / "config.json", _PUBLISHED)
    write_sparse_shapes(tmp_path, shapes)
    opened = open_checkpoint(tmp_path)
    family = find_family(opened.config)
    text_model, section = find_text_model(family, opened.config)
    source = Source(
        config=opened.config,
        text=section,
        preprocessor=Section(preprocessor(_PUBLISHED), file="preprocessor_config.json"),
        prefixes=find_prefixes(opened.tensors, family.prefixes),
        shapes={name: tensor.shape for name, tensor in opened.tensors.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(opened.tensors, {file: part.rules for file, part in parts.items()})
    assert {name for name in ledger.used if name.startswith("video")} == set()
    assert len(ledger.used) + len(ledger.dropped) == len(shapes)
    assert parts["mmproj"].late_metadata["clip.vision.feature_layer"].value == (23,)
