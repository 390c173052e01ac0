"""LLaVA-NeXT: published configurations, where the newline vector is, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError, UnsupportedArchitectureError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.anyres_canvas import AnyresCanvas
from tests.convert.published_llava import Published
from tests.convert.published_llava_next import GRIDS, N_TOKENS, PUBLISHED
from tests.convert.test_llava import SIZES
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.llava_checkpoints import (
    OF_ITS_CLASSES,
    OF_TRANSFORMERS_4,
    preprocessor,
    renamed,
    tensor_shapes,
)
from tests.goldens.recipes.llava_next import RECIPES
from tests.synthetic import write_json, write_sparse_shapes

Golden = Callable[[str], Path]
PINPOINTS = "clip.vision.image_grid_pinpoints"
published_ones = pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)


def mapped(folder: Path, published: Published) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of the published size, whose weights are a hole in a file."""
    config = published.config
    sizes = dict(zip(SIZES, map(int, published.sizes.split()), strict=True))
    whole = {**config, "text_config": {**config["text_config"], **sizes}}
    shapes = {**tensor_shapes(whole), "image_newline": (sizes["hidden_size"],)}
    shapes = {renamed(name, OF_TRANSFORMERS_4): shape for name, shape in shapes.items()}
    assert sum(map(math.prod, shapes.values())) == published.n_parameters
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, shapes)
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    assert family.name == "llava_next"
    text_model, section = find_text_model(family, checkpoint.config)
    images = {**preprocessor(config), "image_grid_pinpoints": GRIDS}
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(images, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={name: shape for name, shape in shapes.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    assert set(ledger.used) | set(ledger.dropped) == set(shapes)
    return parts, ledger


@published_ones
def test_every_published_size_is_taken(tmp_path: Path, published: Published) -> None:
    parts, ledger = mapped(tmp_path, published)
    assert all(name.startswith("vision_tower.") for name in ledger.dropped)
    assert not [loss for part in parts.values() for loss in part.losses]
    text: dict[str, Any] = {key: value.value for key, value in parts["text"].metadata.items()}
    vision: dict[str, Any] = {
        key: value.value for key, value in parts["mmproj"].late_metadata.items()
    }
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
    side = vision["clip.vision.image_size"]
    cells = side // vision["clip.vision.patch_size"]
    assert cells**2 == published.n_visual_tokens
    # Widths and heights, one after the other.
    assert vision[PINPOINTS] == tuple(size for pair in GRIDS for size in reversed(pair))
    flat = [size // side for size in vision[PINPOINTS]]
    canvas = AnyresCanvas(
        side=side,
        cells=cells,
        grids=tuple(zip(flat[::2], flat[1::2], strict=True)),
        newline=b"",
    )
    assert {size: canvas.n_tokens(*size) for size in N_TOKENS} == N_TOKENS


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_shapes_are_those_that_transformers_saves(recipe: Any) -> None:
    stored = read_golden_json(GOLDENS / recipe.name / "weights.json")["tensors"]
    expected = {**tensor_shapes(recipe.config), "image_newline": (96,)}
    assert {name: tuple(shape) for name, (shape, _) in stored.items()} == expected


def test_videos_are_a_loss_of_the_class_that_reads_them(golden: Golden) -> None:
    plan = plan_conversion(golden("llava_next_video"))
    assert plan.family == "llava_next"
    assert [loss for loss in plan.losses if "videos" in loss] == ["videos: images alone are read"]
    images = plan_conversion(golden("llava_next_clip_mistral"))
    assert not any("videos" in loss for loss in images.losses)


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden with SigLIP to change."""
    return Path(shutil.copytree(golden("llava_next_siglip_llama"), tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    "prefixes",
    [
        OF_TRANSFORMERS_4,
        {**OF_ITS_CLASSES, "image_newline": "model.image_newline"},
    ],
)
def test_other_prefixes_give_the_same_tensors(
    golden: Golden, checkpoint: Path, prefixes: dict[str, str]
) -> None:
    rename_tensors(checkpoint, lambda tensor: renamed(tensor, prefixes))
    expected, found = (
        plan_conversion(folder) for folder in (golden("llava_next_siglip_llama"), checkpoint)
    )
    for ours, theirs in ((found.text, expected.text), (found.mmproj, expected.mmproj)):
        assert dict(ours.types) == dict(theirs.types)
        assert ours.sizes == theirs.sizes
        assert dict(ours.metadata) == dict(theirs.metadata)
    assert found.ledger.used != expected.ledger.used


@pytest.mark.parametrize("outtype", ["auto", "f16"])
def test_the_newline_is_kept_as_float32(checkpoint: Path, tmp_path: Path, outtype: Any) -> None:
    paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    convert_checkpoint(
        plan_conversion(checkpoint, outtype=outtype), text_path=paths[0], mmproj_path=paths[1]
    )
    (tensor,) = (one for one in read_gguf(paths[1]).tensors if one.name == "v.image_newline")
    assert (tensor.type, tensor.shape) == ("F32", (96,))


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
        ("image_grid_pinpoints", []),
        ("image_grid_pinpoints", [[22, 33]]),
        ("image_grid_pinpoints", [[22]]),
        ("image_grid_pinpoints", [[22, True]]),
        ("image_grid_pinpoints", [[-22, -22]]),
        ("image_grid_pinpoints", "anyres_max_9"),
        ("vision_feature_select_strategy", "default"),
        ("vision_feature_layer", 4),
        ("projector_hidden_act", "relu"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(checkpoint: Path, path: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(checkpoint, "config.json", path, value))
    assert f"`{path}`" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "value", "blamed"),
    [
        ("image_grid_pinpoints", [[22, 44]], "image_grid_pinpoints"),
        ("image_grid_pinpoints", None, "image_grid_pinpoints"),
        ("size", {"shortest_edge": 24}, "size.shortest_edge"),
        ("size", {"height": 22, "width": 24}, "size.width"),
        ("size", 24, "size.shortest_edge"),
        ("size", None, "size.shortest_edge"),
        ("crop_size", {"height": 24, "width": 22}, "crop_size.height"),
        ("resample", 2, "resample"),
    ],
)
def test_images_of_another_size_than_the_towers_are_refused(
    checkpoint: Path, path: str, value: object, blamed: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(checkpoint, "preprocessor_config.json", path, value))
    assert "preprocessor_config.json" in caught.value.message
    assert f"`{blamed}`" in caught.value.message


def test_a_size_as_a_number_is_that_of_both_sides(checkpoint: Path) -> None:
    edit(checkpoint, "preprocessor_config.json", "size", 22)
    edit(checkpoint, "preprocessor_config.json", "crop_size", 22)
    assert plan_conversion(checkpoint).family == "llava_next"


def test_more_tiles_than_an_image_may_have_are_refused(checkpoint: Path) -> None:
    grids = [[22 * 13, 22 * 12]]
    edit(checkpoint, "preprocessor_config.json", "image_grid_pinpoints", grids)
    with pytest.raises(CheckpointError, match="at most 144 tiles"):
        plan_conversion(edit(checkpoint, "config.json", "image_grid_pinpoints", grids))


def test_another_text_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="gemma2"):
        plan_conversion(edit(checkpoint, "config.json", "text_config.model_type", "gemma2"))
