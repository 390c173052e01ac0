"""PaddleOCR-VL: both namings, the published size over shapes alone, what is left out, refusals."""

from __future__ import annotations

import json
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
from tests.convert.published_paddleocr import FLAT, PREPROCESSOR, Shapes, tensor_shapes
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.qwen3_checkpoints import rewrite
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes

GOLDEN = "paddleocr_vl"
Change = Callable[[Config], object]
Copy = Callable[[], Path]


def mapped(
    folder: Path, config: Config, shapes: Shapes, preprocessor: Config
) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, shapes)
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(preprocessor, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


def test_the_published_size_is_taken(tmp_path: Path) -> None:
    shapes = tensor_shapes(FLAT)
    # The sum is what the published checkpoint's page says.
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (620, 958588736)
    parts, ledger = mapped(tmp_path, FLAT, shapes, PREPROCESSOR)
    used = tensor_shapes(FLAT, unused=False)
    assert set(ledger.dropped) == set(shapes) - set(used)
    values: dict[str, Any] = {key: one.value for key, one in parts["text"].metadata.items()}
    assert values["paddleocr.attention.key_length"] == 128
    assert list(values["paddleocr.rope.dimension_sections"]) == [16, 24, 24, 0]
    assert values["paddleocr.rope.freq_base"] == 500000
    keys = parts["mmproj"].late_metadata
    assert keys["clip.vision.image_min_pixels"].value == 147384
    assert keys["clip.vision.image_max_pixels"].value == 2822400
    assert keys["clip.vision.image_size"].value == 1680


def test_defaults_are_those_of_the_classes(tmp_path: Path) -> None:
    config: Config = {
        "architectures": FLAT["architectures"],
        "text_config": {},
        "vision_config": {"image_size": 384},
    }
    shapes = tensor_shapes(FLAT, unused=False)
    # Tied, where nothing says otherwise and no matrix is there.
    shapes.pop("lm_head.weight")
    kept = {key: PREPROCESSOR[key] for key in ("image_mean", "image_std")}
    parts, _ = mapped(tmp_path, config, shapes, kept)
    assert parts["mmproj"].late_metadata["clip.vision.image_max_pixels"].value == 1536**2


def test_shapes_are_those_that_transformers_saves() -> None:
    config = read_golden_json(GOLDENS / GOLDEN / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / GOLDEN / "weights.json")["tensors"]
    found = {key: tuple(shape) for key, (shape, _) in stored.items() if "packing" not in key}
    assert found == tensor_shapes(config, unused=False)


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Copy:
    """Return what makes a copy of the golden to change."""

    def copied() -> Path:
        return Path(shutil.copytree(golden(GOLDEN), tmp_path / "copy"))

    return copied


def changed(folder: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(folder / file)
    change(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_names_inside_transformers_are_taken_too(checkpoint: Copy) -> None:
    folder = checkpoint()
    before = plan_conversion(folder)

    def inner(name: str) -> str:
        for old, new in (
            ("mlp_AR.", "model.projector."),
            ("visual.", "model.visual."),
            ("model.", "model.language_model."),
        ):
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    rename_tensors(folder, inner)
    after = plan_conversion(folder)
    for one, other in ((before.text, after.text), (before.mmproj, after.mmproj)):
        assert [tensor.info for tensor in one.tensors] == [tensor.info for tensor in other.tensors]


def test_an_output_matrix_is_taken_wherever_there_is_one(checkpoint: Copy) -> None:
    folder = checkpoint()

    def outputs() -> list[str]:
        tensors = plan_conversion(folder).text.tensors
        return [tensor.info.name for tensor in tensors if tensor.info.name == "output.weight"]

    assert outputs() == ["output.weight"]
    changed(folder, lambda values: values["text_config"].pop("tie_word_embeddings"))
    assert outputs() == ["output.weight"]
    rewrite(folder, lambda all_: {name: one for name, one in all_.items() if "lm_head" not in name})
    assert outputs() == []
    changed(folder, lambda values: values["text_config"].update(tie_word_embeddings=False))
    with pytest.raises(ConversionError, match=r"lm_head\.weight"):
        plan_conversion(folder)


@pytest.mark.parametrize(
    ("section", "changes", "key"),
    [
        ("text_config", {"use_bias": True}, "use_bias"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"head_dim": 31}, "head_dim"),
        ("text_config", {"rope_parameters": {"mrope_section": [4, 6, 4]}}, "mrope_section"),
        ("text_config", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type"),
        ("vision_config", {"hidden_act": "silu"}, "hidden_act"),
        ("vision_config", {"spatial_merge_size": 3}, "spatial_merge_size"),
        ("vision_config", {"num_attention_heads": 8}, "num_attention_heads"),
        ("vision_config", {"rope_parameters": {"rope_theta": 5e5}}, "rope_theta"),
    ],
    ids=str,
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(
    checkpoint: Copy, section: str, changes: Config, key: str
) -> None:
    folder = changed(checkpoint(), lambda values: values[section].update(changes))
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
        ({"merge_size": 4}, "merge_size"),
        ({"patch_size": 14}, "patch_size"),
        ({"temporal_patch_size": 2}, "temporal_patch_size"),
        ({"max_pixels": 100}, "max_pixels"),
        ({"max_pixels": 1 << 40}, "max_pixels"),
        ({"min_pixels": 1 << 20}, "min_pixels"),
        ({"max_pixels": None, "size": {"longest_edge": 0}}, "longest_edge"),
    ],
    ids=str,
)
def test_pixels_that_the_runtime_makes_otherwise(
    checkpoint: Copy, changes: Config, key: str
) -> None:
    folder = changed(
        checkpoint(), lambda values: values.update(changes), "preprocessor_config.json"
    )
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(folder)
    assert caught.value.hint
