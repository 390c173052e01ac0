"""LLaVA: published configurations, older and newer names, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
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

from edgevlm.errors import CheckpointError, UnsupportedArchitectureError
from tests.convert.published_llava import PUBLISHED, Published
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.llava_checkpoints import (
    OF_ITS_CLASSES,
    OF_TRANSFORMERS_4,
    preprocessor,
    renamed,
    tensor_shapes,
)
from tests.goldens.recipe import Config
from tests.goldens.recipes.llava import RECIPES
from tests.synthetic import write_json, write_sparse_shapes

Golden = Callable[[str], Path]
Shapes = dict[str, tuple[int, ...]]
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
published_ones = pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)


def shapes_of(published: Published) -> Shapes:
    """Return the published tensors, under the names that transformers 4 gave them."""
    sizes = dict(zip(SIZES, map(int, published.sizes.split()), strict=True))
    text = {**published.config["text_config"], **sizes}
    whole = {**published.config, "text_config": text, "tie_word_embeddings": published.tied}
    return {renamed(name, OF_TRANSFORMERS_4): shape for name, shape in tensor_shapes(whole).items()}


def mapped(folder: Path, config: Config, shapes: Shapes) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of the published size, whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, shapes)
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(preprocessor(config), file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


@published_ones
def test_every_published_size_is_taken(tmp_path: Path, published: Published) -> None:
    shapes = shapes_of(published)
    assert sum(map(math.prod, shapes.values())) == published.n_parameters
    parts, ledger = mapped(tmp_path, published.config, shapes)
    assert set(ledger.used) | set(ledger.dropped) == set(shapes)
    unread = {name for name in shapes if ".layers.23." in name and name.startswith("vision_tower.")}
    is_clip = "clip" in published.config["vision_config"]["model_type"]
    last_norm = {f"vision_tower.vision_model.post_layernorm.{kind}" for kind in ("weight", "bias")}
    assert set(ledger.dropped) == last_norm | (unread if is_clip else set())
    losses = [loss.partition(":")[0] for part in parts.values() for loss in part.losses]
    assert losses == sorted(
        ["images that are not square", *published.losses], key=lambda loss: loss != "sliding window"
    )


@published_ones
def test_every_published_size_says_so_in_its_keys(tmp_path: Path, published: Published) -> None:
    parts, _ = mapped(tmp_path, published.config, shapes_of(published))
    text: Config = {key: value.value for key, value in parts["text"].metadata.items()}
    vision: Config = {key: value.value for key, value in parts["mmproj"].late_metadata.items()}
    name = published.architecture
    numbers = [
        text[f"{name}.{key}"]
        for key in (
            "embedding_length",
            "feed_forward_length",
            "block_count",
            "attention.head_count",
            "attention.head_count_kv",
        )
    ]
    assert numbers == list(map(int, published.sizes.split()))[:5]
    assert {key: text[key] for key in published.keys} == published.keys
    side = vision["clip.vision.image_size"] // vision["clip.vision.patch_size"]
    assert side**2 == published.n_visual_tokens
    # LLaVA-1.5 reads 23 of 24 blocks, llava-interleave all 26.
    n_blocks = 23 if name == "llama" else 26
    assert vision["clip.vision.block_count"] == n_blocks
    assert vision["clip.vision.feature_layer"] == (n_blocks,)
    assert vision.get("clip.use_gelu", False) is (name == "qwen2")
    epsilon = vision["clip.vision.attention.layer_norm_epsilon"]
    assert epsilon == (1e-5 if name == "llama" else 1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_shapes_are_those_that_transformers_saves(recipe: Any) -> None:
    stored = read_golden_json(GOLDENS / recipe.name / "weights.json")["tensors"]
    assert {name: tuple(shape) for name, (shape, _) in stored.items()} == tensor_shapes(
        recipe.config
    )


@pytest.mark.parametrize("prefixes", [OF_TRANSFORMERS_4, OF_ITS_CLASSES])
@pytest.mark.parametrize("name", ["llava_clip_llama", "llava_siglip_mistral"])
def test_other_prefixes_give_the_same_tensors(
    golden: Golden, tmp_path: Path, name: str, prefixes: Mapping[str, str]
) -> None:
    folder = Path(shutil.copytree(golden(name), tmp_path / "checkpoint"))
    rename_tensors(folder, lambda tensor: renamed(tensor, prefixes))
    expected, found = plan_conversion(golden(name)), plan_conversion(folder)
    for ours, theirs in ((found.text, expected.text), (found.mmproj, expected.mmproj)):
        assert dict(ours.types) == dict(theirs.types)
        assert ours.sizes == theirs.sizes
        assert dict(ours.metadata) == dict(theirs.metadata)
    assert found.ledger.used != expected.ledger.used


@pytest.fixture
def clip(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden with CLIP to change."""
    return Path(shutil.copytree(golden("llava_clip_llama"), tmp_path / "checkpoint"))


@pytest.fixture
def siglip(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden with SigLIP to change."""
    return Path(shutil.copytree(golden("llava_siglip_qwen2"), tmp_path / "checkpoint"))


def edit(folder: Path, file: str, path: str, value: object) -> Path:
    config = read_golden_json(folder / file)
    *outer, key = path.split(".")
    place: dict[str, Any] = config
    for part in outer:
        place = place[part]
    place[key] = value
    (folder / file).write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_feature_select_strategy", "full"),
        ("vision_feature_layer", -5),
        ("vision_feature_layer", 4),
        ("vision_feature_layer", []),
        ("vision_feature_layer", [2, 1]),
        ("vision_feature_layer", [-2, 2]),
        ("vision_feature_layer", "last"),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", "no"),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 1),
        ("vision_config.intermediate_size", 32),
        ("text_config.hidden_act", "gelu"),
        ("text_config.rope_parameters.rope_type", "dynamic"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(clip: Path, path: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(clip, "config.json", path, value))
    assert f"`{path}`" in caught.value.message
    assert caught.value.hint


def test_a_patch_that_siglip_leaves_out_is_refused(siglip: Path) -> None:
    edit(siglip, "config.json", "vision_feature_select_strategy", "default")
    with pytest.raises(CheckpointError, match="`vision_feature_select_strategy`"):
        plan_conversion(siglip)


def test_another_scaling_of_pixels_is_refused(clip: Path) -> None:
    edit(clip, "preprocessor_config.json", "resample", 2)
    with pytest.raises(CheckpointError, match="`resample`"):
        plan_conversion(clip)


def test_another_tower_is_told_which_there_are(clip: Path) -> None:
    edit(clip, "config.json", "vision_config.model_type", "eyes9")
    with pytest.raises(UnsupportedArchitectureError) as caught:
        plan_conversion(clip)
    assert "vision tower `eyes9` is not supported yet" in caught.value.message
    towers = ("clip_vision_model", "siglip_vision_model", "pixtral")
    assert all(name in caught.value.hint for name in towers)


def test_another_text_model_is_told_which_go_with_it(clip: Path) -> None:
    edit(clip, "config.json", "text_config.model_type", "gpt9")
    with pytest.raises(UnsupportedArchitectureError) as caught:
        plan_conversion(clip)
    assert all(name in caught.value.hint for name in ("llama", "mistral", "qwen2", "qwen3"))


@pytest.mark.parametrize(
    ("layer", "n_blocks", "layers"),
    [(-2, 2, (2,)), (-1, 3, (3,)), (3, 3, (3,)), (0, 1, (0,)), ([0, 1], 1, (0, 1))],
)
def test_blocks_behind_the_last_one_that_is_read_are_left_out(
    clip: Path, layer: object, n_blocks: int, layers: tuple[int, ...]
) -> None:
    edit(clip, "config.json", "vision_feature_layer", layer)
    if isinstance(layer, list):
        widen(clip)
    plan = plan_conversion(clip)
    assert plan.mmproj.metadata["clip.vision.block_count"].value == n_blocks
    assert plan.mmproj.metadata["clip.vision.feature_layer"].value == layers
    assert f"v.blk.{n_blocks - 1}.ln1.weight" in plan.mmproj.types
    assert f"v.blk.{n_blocks}.ln1.weight" not in plan.mmproj.types
    assert not any("post_ln" in name for name in plan.mmproj.types)


def widen(folder: Path) -> None:
    """Let the projector's first layer read two states side by side."""
    config = read_golden_json(folder / "config.json")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    write_sparse_shapes(folder, tensor_shapes(config))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_center_crop": True}, "takes the square in their middle"),
        ({"do_center_crop": False}, "stretches them"),
        ({"do_pad": True}, ""),
    ],
)
def test_what_becomes_of_other_images_is_stated(
    clip: Path, settings: Mapping[str, bool], expected: str
) -> None:
    for key, value in settings.items():
        edit(clip, "preprocessor_config.json", key, value)
    losses = [loss for loss in plan_conversion(clip).losses if loss.startswith("images")]
    assert [loss.endswith(expected) for loss in losses] == ([True] if expected else [])


def test_losses_stand_in_both_files(golden: Golden) -> None:
    plan = plan_conversion(golden("llava_siglip_mistral"))
    text, mmproj = (part.metadata["edgevlm.losses"].value for part in (plan.text, plan.mmproj))
    assert (*text, *mmproj) == plan.losses  # pyright: ignore[reportGeneralTypeIssues]
    assert [loss.partition(":")[0] for loss in plan.losses] == [
        "sliding window",
        "images that are not square",
    ]
