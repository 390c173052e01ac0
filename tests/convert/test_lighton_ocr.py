"""LightOnOCR: the published size over shapes alone, both class names, what is refused or lost.

No hub was at hand: the size is that of the defaults of transformers' class, `LightOnOcrConfig`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import map_tensors

from edgevlm.errors import CheckpointError
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.pixtral_checkpoints import tensor_shapes
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes

GOLDEN = "lighton_ocr"
Change = Callable[[Config], object]
Copy = Callable[[], Path]
_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_encoder.",
    "multi_modal_projector.": "model.vision_projection.",
}
_SIZES: Config = {
    "multimodal_projector_bias": False,
    "spatial_merge_size": 2,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}


def shapes_of(sizes: Config) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a checkpoint by name: Mistral 3's, and norms of Qwen3's heads."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_shapes({"multimodal_projector_bias": False, **sizes}).items():
        prefix = next(prefix for prefix in _NAMES if name.startswith(prefix))
        found[_NAMES[prefix] + name.removeprefix(prefix)] = shape
    text = sizes["text_config"]
    for layer in range(text["num_hidden_layers"]):
        for letter in "qk":
            norm = f"model.language_model.layers.{layer}.self_attn.{letter}_norm.weight"
            found[norm] = (text["head_dim"],)
    return found


@pytest.mark.parametrize("name", ["LightOnOCR", "LightOnOcr"])
def test_the_published_size_is_taken(tmp_path: Path, name: str) -> None:
    config: Config = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "text_config": {"model_type": "qwen3"},
        "vision_config": {"model_type": "pixtral"},
    }
    shapes = shapes_of(_SIZES)
    # As many as the class has, with the output tied.
    assert sum(map(math.prod, shapes.values())) == 1_005_647_872
    write_json(tmp_path / "config.json", config)
    write_sparse_shapes(tmp_path, shapes)
    checkpoint = open_checkpoint(tmp_path)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    pixels: Config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(pixels, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    assert not ledger.dropped
    keys = parts["mmproj"].late_metadata
    assert keys["clip.vision.image_size"].value == 1540
    # 55 tokens a side: nothing else needs to be said.
    assert "clip.vision.preproc_image_size" not in keys
    assert parts["text"].metadata["qwen3.rope.freq_base"].value == 1_000_000


def test_shapes_are_those_that_transformers_saves() -> None:
    config = read_golden_json(GOLDENS / GOLDEN / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / GOLDEN / "weights.json")["tensors"]
    assert {key: tuple(shape) for key, (shape, _) in stored.items()} == shapes_of(config)


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Copy:
    """Return what makes a copy of the golden to change."""

    def copied() -> Path:
        return Path(shutil.copytree(golden(GOLDEN), tmp_path / "copy"))

    return copied


def changed(folder: Path, change: Change, file: str) -> Path:
    values = read_golden_json(folder / file)
    change(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_sizes_of_images_and_what_is_lost(checkpoint: Copy) -> None:
    folder = checkpoint()
    losses = plan_conversion(folder).losses
    assert any("longer side is below 64 pixels" in loss for loss in losses)
    assert not any("multiples of 16" in loss for loss in losses)
    other = {"patch_size": {"height": 8, "width": 8}, "size": {"longest_edge": 90}}
    changed(folder, lambda values: values.update(other), "preprocessor_config.json")
    plan = plan_conversion(folder)
    assert any("multiples of 16" in loss for loss in plan.losses)
    assert plan.mmproj is not None
    assert plan.mmproj.metadata["clip.vision.preproc_image_size"].value == 96


@pytest.mark.parametrize(
    ("file", "changes", "key"),
    [
        ("preprocessor_config.json", {"size": {"longest_edge": 9000}}, "size"),
        ("preprocessor_config.json", {"patch_size": {"height": 0, "width": 16}}, "height"),
        ("preprocessor_config.json", {"resample": 2}, "resample"),
        ("config.json", {"spatial_merge_size": 0}, "spatial_merge_size"),
    ],
    ids=str,
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(
    checkpoint: Copy, file: str, changes: Config, key: str
) -> None:
    folder = changed(checkpoint(), lambda values: values.update(changes), file)
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(folder)
    assert caught.value.hint
