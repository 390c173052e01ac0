"""Qwen2-VL and Qwen2.5-VL: every published size, old and new forms, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError
from edgevlm.runtime.vlm import open_vlm
from tests.convert.published_qwen2 import N_PARAMETERS, PUBLISHED
from tests.convert.tricks import error_of, rename_tensors
from tests.goldens.files import GOLDENS, drawn_image, read_golden_json
from tests.goldens.qwen2_checkpoints import flat, tensor_shapes
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes

Golden = Callable[[str], Path]
OLD_PREPROCESSOR: Config = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def mapped(folder: Path, config: Config) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint of the published size, whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, tensor_shapes(config))
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    assert family.name == config["model_type"]
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(OLD_PREPROCESSOR, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_taken(tmp_path: Path, name: str) -> None:
    config = PUBLISHED[name]
    shapes = tensor_shapes(config)
    assert sum(map(math.prod, shapes.values())) == N_PARAMETERS[name]
    parts, ledger = mapped(tmp_path, config)
    assert set(ledger.used) == set(shapes)
    assert ledger.dropped == {}
    text, mmproj = parts["text"].metadata, parts["mmproj"].late_metadata
    assert text["qwen2vl.rope.dimension_sections"].value == (16, 24, 24, 0)
    assert text["qwen2vl.context_length"].value == config["max_position_embeddings"]
    assert mmproj["clip.vision.projection_dim"].value == config["hidden_size"]
    windows = mmproj.get("clip.vision.n_wa_pattern")
    assert (windows and windows.value) == (8 if "2.5" in name else None)
    inner = config["vision_config"].get("intermediate_size", 5120)
    assert mmproj["clip.vision.feed_forward_length"].value == inner


def test_shapes_are_those_that_transformers_saves() -> None:
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_vl_yarn"):
        config = read_golden_json(GOLDENS / name / "checkpoint" / "config.json")
        stored = read_golden_json(GOLDENS / name / "weights.json")["tensors"]
        assert {key: tuple(shape) for key, (shape, _) in stored.items()} == tensor_shapes(config)


def contents(checkpoint: Path, folder: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Return the tensors' hashes by name, and the keys, of both files together."""
    folder.mkdir()
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    plan = plan_conversion(checkpoint, name="x")
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    hashes = {
        tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest()
        for path in paths
        for tensor in gguf.GGUFReader(path).tensors
    }
    keys = {**plan.text.metadata, **plan.mmproj.metadata}
    return hashes, {key: value.value for key, value in keys.items()}


def to_new(name: str) -> str:
    """In memory, and in checkpoints that were saved without a look back, transformers has these."""
    name = re.sub(r"^model\.", "model.language_model.", name)
    return re.sub(r"^visual\.", "model.visual.", name)


def test_new_names_and_old_ones_give_the_same_files(golden: Golden, tmp_path: Path) -> None:
    for name in ("qwen2_vl", "qwen2_5_vl"):
        new = Path(shutil.copytree(golden(name), tmp_path / f"{name}-new"))
        rename_tensors(new, to_new)
        old = contents(golden(name), tmp_path / f"{name}-old-files")
        assert contents(new, tmp_path / f"{name}-new-files") == old


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_flat_and_nested_configurations_give_the_same_files(
    golden: Golden, tmp_path: Path, name: str
) -> None:
    config = read_golden_json(GOLDENS / name / "checkpoint" / "config.json")
    rope = config["text_config"]["rope_parameters"]
    sections: Config = {"mrope_section": rope["mrope_section"]}
    older = flat(config, rope_scaling={"type": "mrope", **sections})
    # transformers 4.52 to 4.57 wrote both, and the tower's old name.
    both = {**older, "text_config": {**config["text_config"], "rope_parameters": None}}
    both["text_config"] |= {
        "rope_scaling": {"rope_type": "default", "type": "default", **sections},
        "rope_theta": rope["rope_theta"],
    }
    both["vision_config"] = {**older["vision_config"], "model_type": config["model_type"]}
    expected = contents(golden(name), tmp_path / "expected")
    for number, changed in enumerate((older, both)):
        folder = Path(shutil.copytree(golden(name), tmp_path / str(number)))
        write_json(folder / "config.json", changed)
        assert contents(folder, tmp_path / f"{number}-files") == expected


def changed(checkpoint: Path, folder: Path, changes: Mapping[str, object]) -> Path:
    """Return a copy of a checkpoint; keys of `changes` are paths in config.json."""
    shutil.copytree(checkpoint, folder)
    config = read_golden_json(folder / "config.json")
    for path, value in changes.items():
        *outer, key = path.split(".")
        place: dict[str, Any] = config
        for part in outer:
            place = place[part]
        place[key] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


T, V = "text_config.", "vision_config."
ROPE = f"{T}rope_parameters."
YARN = {f"{ROPE}rope_type": "yarn", f"{ROPE}factor": 4.0}
# What llama.cpp's graphs compute in one way only: golden, changes, the key that the error names.
REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("qwen2_vl", {f"{T}hidden_act": "gelu"}, f"{T}hidden_act"),
    ("qwen2_vl", {f"{T}head_dim": 16}, f"{T}head_dim"),
    (
        "qwen2_vl",
        {f"{T}use_sliding_window": True, f"{T}sliding_window": 64, f"{T}max_window_layers": 2},
        f"{T}use_sliding_window",
    ),
    (
        "qwen2_vl",
        {
            f"{T}use_sliding_window": True,
            f"{T}sliding_window": 64,
            f"{T}layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        f"{T}use_sliding_window",
    ),
    ("qwen2_vl", {f"{ROPE}rope_type": "dynamic", f"{ROPE}factor": 2.0}, f"{ROPE}rope_type"),
    ("qwen2_vl", {f"{ROPE}rope_type": "llama3", f"{ROPE}factor": 2.0}, f"{ROPE}rope_type"),
    ("qwen2_vl", {**YARN, f"{ROPE}beta_fast": 16}, f"{ROPE}beta_fast"),
    ("qwen2_vl", {**YARN, f"{ROPE}beta_slow": 2.0}, f"{ROPE}beta_slow"),
    ("qwen2_vl", {**YARN, f"{ROPE}truncate": False}, f"{ROPE}truncate"),
    ("qwen2_vl", {f"{ROPE}mrope_section": [4, 6, 5]}, f"{ROPE}mrope_section"),
    ("qwen2_vl", {f"{ROPE}mrope_interleaved": True}, f"{ROPE}mrope_interleaved"),
    ("qwen2_vl", {f"{V}hidden_act": "gelu"}, f"{V}hidden_act"),
    ("qwen2_vl", {f"{V}mlp_ratio": 1}, f"{V}mlp_ratio"),
    ("qwen2_vl", {f"{V}num_heads": 8}, f"{V}num_heads"),
    ("qwen2_vl", {f"{V}hidden_size": 64}, f"{V}hidden_size"),
    ("qwen2_vl", {f"{V}spatial_merge_size": 1}, f"{V}spatial_merge_size"),
    ("qwen2_vl", {f"{V}temporal_patch_size": 1}, f"{V}temporal_patch_size"),
    ("qwen2_vl", {f"{V}in_chans": 1}, f"{V}in_chans"),
    ("qwen2_vl", {f"{V}rope_parameters": {"rope_theta": 100.0}}, f"{V}rope_parameters.rope_theta"),
    ("qwen2_5_vl", {f"{V}hidden_act": "gelu"}, f"{V}hidden_act"),
    ("qwen2_5_vl", {f"{V}intermediate_size": 48}, f"{V}intermediate_size"),
    ("qwen2_5_vl", {f"{V}window_size": 56}, f"{V}window_size"),
    ("qwen2_5_vl", {f"{V}window_size": 140}, f"{V}window_size"),
    ("qwen2_5_vl", {f"{V}patch_size": 57}, f"{V}patch_size"),
    *(
        ("qwen2_5_vl", {f"{V}fullatt_block_indexes": layers}, f"{V}fullatt_block_indexes")
        for layers in ([0], [1, 5], [2], [1, 2, 3], [0, 1, 2, 3, 4])
    ),
]


@pytest.mark.parametrize(
    ("name", "changes", "key"), REFUSED, ids=[str(list(case[1].items())[-1]) for case in REFUSED]
)
def test_what_the_graph_does_not_compute_is_refused_by_name(
    golden: Golden, tmp_path: Path, name: str, changes: dict[str, object], key: str
) -> None:
    error = error_of(changed(golden(name), tmp_path / "changed", changes))
    assert isinstance(error, CheckpointError)
    assert f"`{key}`" in error.message


def test_sliding_windows_that_never_slide_are_taken(golden: Golden, tmp_path: Path) -> None:
    windows: dict[str, object] = {f"{T}use_sliding_window": True, f"{T}max_window_layers": 1}
    for number, more in enumerate(
        (
            {f"{T}sliding_window": 2048},
            {f"{T}sliding_window": 64, f"{T}max_window_layers": 3},
            {f"{T}sliding_window": 64, f"{T}layer_types": ["full_attention"] * 3},
            {f"{T}use_sliding_window": False, f"{T}sliding_window": None},
        )
    ):
        folder = changed(golden("qwen2_vl"), tmp_path / str(number), {**windows, **more})
        assert plan_conversion(folder).family == "qwen2_vl"


@pytest.mark.parametrize(
    ("full", "pattern"),
    [([2, 5], 3), ([5, 2, 5], 3), ([1, 3, 5], 2), ([3], 4), ([5], 6), ([], 7), ([7, 15], 7)],
)
def test_the_pattern_counts_layers_as_the_graph_does(
    golden: Golden, tmp_path: Path, full: list[int], pattern: int
) -> None:
    folder = changed(
        golden("qwen2_5_vl"), tmp_path / "changed", {f"{V}fullatt_block_indexes": full}
    )
    assert plan_conversion(folder).mmproj.metadata["clip.vision.n_wa_pattern"].value == pattern


def test_a_tower_without_windows_runs(golden: Golden, tmp_path: Path) -> None:
    everywhere: dict[str, object] = {f"{V}fullatt_block_indexes": list(range(6))}
    plan = plan_conversion(changed(golden("qwen2_5_vl"), tmp_path / "changed", everywhere))
    assert plan.mmproj.metadata["clip.vision.n_wa_pattern"].value == 0
    paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    with open_vlm(model=paths[0], mmproj=paths[1], n_ctx=256, device="cpu") as vlm:
        assert vlm.first_logits("What is it?", [drawn_image("140x252-1")]).shape == (320,)


def test_yarn_as_transformers_reads_it(golden: Golden, tmp_path: Path) -> None:
    scaling = "qwen2vl.rope.scaling."
    changes: dict[str, object] = {
        f"{T}original_max_position_embeddings": 256,
        f"{ROPE}attention_factor": None,
        f"{ROPE}mscale": 1.0,
        f"{ROPE}mscale_all_dim": 0.5,
    }
    folder = changed(golden("qwen2_vl_yarn"), tmp_path / "changed", changes)
    keys = plan_conversion(folder).text.metadata
    # The outer number counts, not the 512 of the rotary settings.
    assert keys[f"{scaling}original_context_length"].value == 256
    # llama.cpp multiplies by the numerator of the two scales itself.
    assert keys[f"{scaling}attn_factor"].value == pytest.approx(1 / (0.05 * math.log(4) + 1))
