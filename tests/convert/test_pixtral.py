"""Pixtral and Mistral 3: published configurations, other names, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
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
from tests.convert.published_pixtral import PUBLISHED, Published
from tests.convert.test_llava import edit
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.llava_checkpoints import renamed
from tests.goldens.pixtral_checkpoints import OF_ITS_CLASSES, Shapes, tensor_shapes
from tests.goldens.recipe import Config
from tests.goldens.recipes import mistral3, pixtral
from tests.synthetic import write_json, write_sparse_shapes

Golden = Callable[[str], Path]
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
BREAK = 12
published_ones = pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)


def shapes_of(published: Published) -> Shapes:
    config = published.config
    sizes = dict(zip(SIZES, map(int, published.sizes.split()), strict=True))
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    whole = {
        "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
        **config,
        "text_config": {**config["text_config"], **sizes},
        "vision_config": {**tower, **config["vision_config"]},
    }
    return tensor_shapes(whole)


def mapped(folder: Path, published: Published) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of the published size, whose weights are a hole in a file."""
    write_json(folder / "config.json", published.config)
    write_sparse_shapes(folder, shapes_of(published))
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    longest = published.config["vision_config"]["image_size"]
    settings: Config = {**pixtral.PREPROCESSOR, "size": {"longest_edge": longest}}
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(settings, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
        token_id={"[IMG_BREAK]": BREAK}.get,
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


@published_ones
def test_every_published_size_is_taken(tmp_path: Path, published: Published) -> None:
    shapes = shapes_of(published)
    assert sum(map(math.prod, shapes.values())) == published.n_parameters
    parts, ledger = mapped(tmp_path, published)
    assert set(ledger.used) == set(shapes)
    assert ledger.dropped == {}
    embedding = ledger.used["language_model.model.embed_tokens.weight"]
    assert embedding == ("token_embd.weight", "v.token_embd.img_break")
    (loss,) = (loss for part in parts.values() for loss in part.losses)
    assert f"transformers to {published.n_most}" in loss


@published_ones
def test_every_published_size_says_so_in_its_keys(tmp_path: Path, published: Published) -> None:
    parts, _ = mapped(tmp_path, published)
    both = {**parts["text"].metadata, **parts["text"].late_metadata}
    text: Config = {key: value.value for key, value in both.items()}
    vision: Config = {key: value.value for key, value in parts["mmproj"].late_metadata.items()}
    name = published.architecture
    keys = (
        "embedding_length",
        "feed_forward_length",
        "block_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
    )
    assert [text[f"{name}.{key}"] for key in keys] == list(map(int, published.sizes.split()))[:6]
    assert {key: text[f"{name}.{key}"] for key in published.keys} == published.keys
    assert f"{name}.rope.scaling.attn_factor" not in text
    assert vision["clip.projector_type"] == "pixtral"
    assert vision["clip.use_silu"] is True
    merged = 2 if name == "mistral3" else None
    assert vision.get("clip.vision.spatial_merge_size") == merged
    numbers = [vision[f"clip.vision.{key}"] for key in ("block_count", "embedding_length")]
    assert numbers == [24, 1024]


@pytest.mark.parametrize("recipe", [pixtral.RECIPE, mistral3.RECIPE], ids=lambda one: one.name)
def test_shapes_are_those_that_transformers_saves(recipe: Any) -> None:
    stored = read_golden_json(GOLDENS / recipe.name / "weights.json")["tensors"]
    found = {name: tuple(shape) for name, (shape, _) in stored.items()}
    assert found == tensor_shapes(recipe.config)


@pytest.mark.parametrize("name", ["pixtral", "mistral3"])
def test_other_prefixes_give_the_same_tensors(golden: Golden, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(golden(name), tmp_path / "checkpoint"))
    rename_tensors(folder, lambda tensor: renamed(tensor, OF_ITS_CLASSES))
    expected, found = plan_conversion(golden(name)), plan_conversion(folder)
    for ours, theirs in ((found.text, expected.text), (found.mmproj, expected.mmproj)):
        assert dict(ours.types) == dict(theirs.types)
        assert ours.sizes == theirs.sizes
        assert dict(ours.metadata) == dict(theirs.metadata)
    assert found.ledger.used != expected.ledger.used


@pytest.fixture(params=["pixtral", "mistral3"])
def checkpoint(golden: Golden, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a golden to change."""
    return Path(shutil.copytree(golden(request.param), tmp_path / "checkpoint"))


@pytest.fixture
def ministral(golden: Golden, tmp_path: Path) -> Path:
    """A copy of Mistral 3's golden to change."""
    return Path(shutil.copytree(golden("mistral3"), tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_feature_layer", -2),
        ("projector_hidden_act", "relu"),
        ("multimodal_projector_bias", "no"),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 1),
        ("vision_config.head_dim", 32),
        ("vision_config.num_attention_heads", 24),
        ("vision_config.rope_parameters.rope_theta", 100.0),
        ("vision_config.rope_parameters.rope_type", "yarn"),
        ("text_config.hidden_act", "gelu"),
        ("text_config.rope_parameters.rope_type", "dynamic"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(
    checkpoint: Path, path: str, value: object
) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(checkpoint, "config.json", path, value))
    assert f"`{path}`" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spatial_merge_size", 0),
        ("text_config.rope_parameters.llama_4_scaling_beta", None),
        ("text_config.rope_parameters.original_max_position_embeddings", None),
        ("text_config.rope_parameters.rope_type", "default"),
        ("text_config.rope_parameters.mscale_all_dim", -1.0),
    ],
)
def test_what_ministral_lacks_is_named(ministral: Path, path: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(ministral, "config.json", path, value))
    assert f"`{path}`" in caught.value.message


GROWTH = 0.1 * math.log(4.0)


@pytest.mark.parametrize(
    ("settings", "log_mul", "wanted"),
    [
        ({}, 1.0, 1.0),
        ({"mscale": 2.0}, 1.0, (2 * GROWTH + 1) / (GROWTH + 1)),
        ({"mscale": 0.5, "mscale_all_dim": 0.5}, 0.5, 1.0),
        ({"attention_factor": 1.5}, 1.0, 1.5),
    ],
)
def test_llama_cpp_arrives_at_the_attention_factor_of_transformers(
    ministral: Path, settings: dict[str, float], log_mul: float, wanted: float
) -> None:
    for key, value in settings.items():
        edit(ministral, "config.json", f"text_config.rope_parameters.{key}", value)
    metadata = plan_conversion(ministral).text.metadata
    assert metadata["mistral3.rope.scaling.yarn_log_multiplier"].value == log_mul
    stored = metadata.get("mistral3.rope.scaling.attn_factor")
    factor = 1.0 if stored is None else float(str(stored.value))
    # src/llama-context.cpp
    assert factor * (GROWTH + 1) / (log_mul * GROWTH + 1) == pytest.approx(wanted)
    assert (stored is None) == (settings == {})


@pytest.mark.parametrize("stored", [True, False])
def test_an_output_matrix_counts_where_the_configuration_does_not_say(
    ministral: Path, stored: bool
) -> None:
    edit(ministral, "config.json", "tie_word_embeddings", None)
    edit(ministral, "config.json", "text_config.tie_word_embeddings", None)
    if not stored:
        config = read_golden_json(ministral / "config.json") | {"tie_word_embeddings": True}
        for path in ministral.glob("*.safetensors*"):
            path.unlink()
        write_sparse_shapes(ministral, tensor_shapes(config))
    assert ("output.weight" in plan_conversion(ministral).text.types) == stored


def test_a_patch_that_pixtral_leaves_out_is_refused(golden: Golden, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden("pixtral"), tmp_path / "checkpoint"))
    edit(folder, "config.json", "vision_feature_select_strategy", "default")
    with pytest.raises(CheckpointError, match="`vision_feature_select_strategy`"):
        plan_conversion(folder)


def test_a_tokenizer_without_the_end_of_a_row_is_named(checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = checkpoint / name
        text = path.read_text(encoding="utf-8").replace("[IMG_BREAK]", "[IMG_BROKE]")
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConversionError, match=r"lacks '\[IMG_BREAK\]'"):
        plan_conversion(checkpoint)


def test_another_epsilon_behind_the_tower_is_stated(ministral: Path) -> None:
    assert len(plan_conversion(ministral).losses) == 1
    edit(ministral, "config.json", "text_config.rms_norm_eps", 1e-6)
    losses = plan_conversion(ministral).losses
    assert any(loss.startswith("norm behind the vision tower") for loss in losses)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"longest_edge": 512}, "transformers to 1024"),
        ({"height": 1024, "width": 1024}, "transformers to 4096"),
    ],
)
def test_how_large_images_become_is_stated(
    ministral: Path, size: dict[str, int], expected: str
) -> None:
    edit(ministral, "preprocessor_config.json", "size", size)
    (loss,) = plan_conversion(ministral).losses
    assert (expected in loss) == (size != {"longest_edge": 512})


def test_a_picture_that_is_not_square_at_most_is_refused(ministral: Path) -> None:
    edit(ministral, "preprocessor_config.json", "size", {"height": 512, "width": 256})
    with pytest.raises(CheckpointError, match=r"`size\.width`"):
        plan_conversion(ministral)
