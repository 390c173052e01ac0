"""InternVL: every published size in both forms, other names, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError, UnsupportedArchitectureError
from tests.convert.published_internvl import N_BILLION, PUBLISHED, SETTINGS
from tests.convert.tricks import error_of, rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.internvl_checkpoints import (
    as_opengvlab,
    opengvlab_config,
    opengvlab_shapes,
    tensor_shapes,
)
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes
from tests.tokenizers.internvl import write_tokenizer_opengvlab

Golden = Callable[[str], Path]
Contents = tuple[dict[str, bytes], dict[str, object]]
POSITIONS = "v.position_embd.weight"


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden("internvl"), tmp_path / "internvl"))


@pytest.fixture
def opengvlab(checkpoint: Path) -> Path:
    """The same in OpenGVLab's form, tokenizer included."""
    as_opengvlab(checkpoint)
    for name in ("tokenizer.json", "chat_template.jinja"):
        (checkpoint / name).unlink()
    write_tokenizer_opengvlab(checkpoint)
    return checkpoint


def mapped(
    folder: Path, config: Config, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of the published size, whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, shapes)
    opened = open_checkpoint(folder)
    family = find_family(opened.config)
    text_model, section = find_text_model(family, opened.config)
    source = Source(
        config=opened.config,
        text=section,
        preprocessor=Section(SETTINGS, file="preprocessor_config.json"),
        prefixes=find_prefixes(opened.tensors, family.prefixes),
        shapes=shapes,
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(opened.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


@pytest.mark.parametrize("form", ["transformers", "OpenGVLab"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_taken(tmp_path: Path, name: str, form: str) -> None:
    config = PUBLISHED[name]
    shapes = tensor_shapes(config)
    n_digits = len(str(N_BILLION[name]).partition(".")[2])
    n_billion = sum(map(math.prod, shapes.values())) / 1e9
    assert abs(n_billion - N_BILLION[name]) <= 0.5 * 10**-n_digits
    if form == "OpenGVLab":
        shapes = opengvlab_shapes(config)
        config = opengvlab_config(config, SETTINGS)
        # Published ones do not all say so.
        del config["llm_config"]["tie_word_embeddings"]
    parts, ledger = mapped(tmp_path, config, shapes)
    assert set(ledger.used) == set(shapes)
    assert ledger.dropped == {}
    mmproj = parts["mmproj"].late_metadata
    assert mmproj["clip.vision.image_size"].value == 448
    assert mmproj["clip.vision.projector.scale_factor"].value == 2
    assert mmproj["clip.vision.preproc_max_tiles"].value == 12
    assert parts["mmproj"].losses == parts["text"].losses == ()


def test_shapes_are_those_that_transformers_saves() -> None:
    config = read_golden_json(GOLDENS / "internvl" / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / "internvl" / "weights.json")["tensors"]
    assert {name: tuple(shape) for name, (shape, _) in stored.items()} == tensor_shapes(config)


def contents(plan: ConversionPlan) -> Contents:
    """Return the tensors by name and the keys of both files, whatever their order."""
    tensors = {
        tensor.info.name: tensor.read(0, math.prod(tensor.info.shape[:-1])).tobytes()
        for file in (plan.text, plan.mmproj)
        for tensor in file.tensors
    }
    keys = {**plan.text.metadata, **plan.mmproj.metadata}
    return tensors, {key: value.value for key, value in keys.items()}


def test_opengvlabs_form_gives_the_same_files(golden: Golden, opengvlab: Path) -> None:
    tensors, keys = contents(plan_conversion(golden("internvl"), name="x"))
    other_tensors, other_keys = contents(plan_conversion(opengvlab, name="x"))
    assert other_tensors == tensors
    template = "tokenizer.chat_template"
    assert "<IMG_CONTEXT>" in str(other_keys[template])
    assert other_keys == {**keys, template: other_keys[template]}


def in_memory(name: str) -> str:
    """Return what transformers calls a tensor in memory, and saved in versions in between."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.")
    return f"model.{name}"


def test_other_prefixes_give_the_same_files(golden: Golden, checkpoint: Path) -> None:
    rename_tensors(checkpoint, in_memory)
    same = contents(plan_conversion(golden("internvl"), name="x"))
    assert contents(plan_conversion(checkpoint, name="x")) == same


def test_the_table_stays_as_it_is_for_a_runtime_with_the_token_in_front(checkpoint: Path) -> None:
    asked: list[str] = []

    def mended(projector: str) -> bool:
        asked.append(projector)
        return True

    tables = [
        next(
            tensor.read(0, tensor.info.shape[1])
            for tensor in plan.mmproj.tensors
            if tensor.info.name == POSITIONS
        )
        for plan in (
            plan_conversion(checkpoint),
            plan_conversion(checkpoint, class_token_first=mended),
        )
    ]
    assert asked == ["internvl"]
    assert np.array_equal(np.roll(tables[0], 1, axis=0), tables[1])
    assert not np.array_equal(tables[0], tables[1])


def edited(folder: Path, path: str, value: object, file: str = "config.json") -> Path:
    """Change a key of a JSON file; `path` has dots."""
    document = read_golden_json(folder / file)
    *outer, key = path.split(".")
    place: dict[str, Any] = document
    for part in outer:
        place = place[part]
    place[key] = value
    (folder / file).write_text(json.dumps(document), encoding="utf-8")
    return folder


VISION = "vision_config."
REFUSED: Mapping[str, object] = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "full",
    "projector_hidden_act": "relu",
    "downsample_ratio": 0.3,
    "image_seq_length": 256,
    f"{VISION}hidden_act": "relu",
    f"{VISION}norm_type": "rms_norm",
    f"{VISION}use_qk_norm": True,
    f"{VISION}use_mean_pooling": False,
    f"{VISION}use_absolute_position_embeddings": False,
    f"{VISION}image_size": [16, 32],
    f"{VISION}patch_size": [4],
    f"{VISION}num_channels": 1,
    "text_config.hidden_act": "gelu",
}
REFUSED_OPENGVLAB: Mapping[str, object] = {
    "select_layer": -4,
    "ps_version": "v1",
    "pad2square": True,
    "force_image_size": 448,
    "min_dynamic_patch": 2,
    "max_dynamic_patch": 145,
    "use_thumbnail": False,
    f"{VISION}norm_type": "rms_norm",
    f"{VISION}qk_normalization": True,
    "llm_config.hidden_act": "gelu",
    "llm_config.rope_scaling.rope_type": "longrope",
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(checkpoint: Path, path: str) -> None:
    error = error_of(edited(checkpoint, path, REFUSED[path]))
    assert isinstance(error, CheckpointError)
    assert f"`{path}`" in error.message


@pytest.mark.parametrize("path", REFUSED_OPENGVLAB)
def test_it_is_refused_in_opengvlabs_form(opengvlab: Path, path: str) -> None:
    error = error_of(edited(opengvlab, path, REFUSED_OPENGVLAB[path]))
    assert isinstance(error, CheckpointError)
    assert f"`{path}`" in error.message


@pytest.mark.parametrize(
    ("key", "value"), [("min_patches", 2), ("max_patches", 0), ("resample", 2)]
)
def test_other_tiles_are_refused(checkpoint: Path, key: str, value: int) -> None:
    error = error_of(edited(checkpoint, key, value, "preprocessor_config.json"))
    assert f"`{key}`" in error.message


def test_an_image_that_is_not_cut_is_one_tile(opengvlab: Path) -> None:
    edited(opengvlab, "dynamic_image_size", False)
    plan = plan_conversion(edited(opengvlab, "use_thumbnail", False))
    assert plan.mmproj.metadata["clip.vision.preproc_max_tiles"].value == 1


@pytest.mark.parametrize(
    ("model_type", "reason"), [("internlm2", "neither transformers nor"), ("llama", "")]
)
def test_other_text_models_are_refused(opengvlab: Path, model_type: str, reason: str) -> None:
    edited(opengvlab, "llm_config.model_type", model_type)
    error = error_of(opengvlab)
    assert isinstance(error, UnsupportedArchitectureError)
    assert f"text model `{model_type}` is not supported" in error.message
    assert reason in error.message
    assert "qwen3_moe" in error.hint


@pytest.mark.parametrize(
    ("line", "blamed"), [("a b c", "not a merge of two tokens"), ("lonely", "not a merge")]
)
def test_merges_that_are_none(opengvlab: Path, line: str, blamed: str) -> None:
    with (opengvlab / "merges.txt").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    assert blamed in error_of(opengvlab).message


def test_separate_files_of_another_tokenizer_are_not_taken(opengvlab: Path) -> None:
    edited(opengvlab, "tokenizer_class", "GPT2Tokenizer", "tokenizer_config.json")
    assert "neither tokenizer.json nor tokenizer.model" in error_of(opengvlab).message
