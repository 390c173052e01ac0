"""Gemma 3: published configurations, older and newer forms, and what is refused."""

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
from edgevlm_convert.plan import ConversionPlan
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.published_gemma3 import (
    PREPROCESSOR,
    PUBLISHED,
    Published,
    Shapes,
    tensor_shapes,
)
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.llava_checkpoints import OF_ITS_CLASSES, OF_TRANSFORMERS_4, renamed
from tests.goldens.recipe import Config
from tests.goldens.recipes import RECIPES
from tests.synthetic import write_json, write_sparse_shapes

Golden = Callable[[str], Path]
T, V = "text_config.", "vision_config."
ROPE = f"{T}rope_parameters."
SLIDING, FULL = "sliding_attention", "full_attention"
published_ones = pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)


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
        preprocessor=Section(PREPROCESSOR, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


@published_ones
def test_every_published_size_is_taken(tmp_path: Path, published: Published) -> None:
    shapes = tensor_shapes(published.config, published.sizes)
    assert sum(map(math.prod, shapes.values())) == published.n_parameters
    older = {renamed(name, OF_TRANSFORMERS_4): shape for name, shape in shapes.items()}
    parts, ledger = mapped(tmp_path, published.config, older)
    assert set(ledger.used) == set(older)
    assert ledger.dropped == {}
    assert [loss for part in parts.values() for loss in part.losses] == []


@published_ones
def test_every_published_size_says_so_in_its_keys(tmp_path: Path, published: Published) -> None:
    shapes = tensor_shapes(published.config, published.sizes)
    parts, _ = mapped(tmp_path, published.config, shapes)
    text: Config = {
        key.removeprefix("gemma3."): value.value
        for key, value in {**parts["text"].metadata, **parts["text"].late_metadata}.items()
    }
    width, inner, n_layers, n_heads, n_kv_heads, head = map(int, published.sizes.split())
    assert text == {
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.key_length": head,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "attention.sliding_window": 1024,
        "attention.value_length": head,
        "block_count": n_layers,
        "context_length": 131072,
        "embedding_length": width,
        "feed_forward_length": inner,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.scaling.factor": 8.0,
        "rope.scaling.type": "linear",
    }
    vision: Config = {key: value.value for key, value in parts["mmproj"].late_metadata.items()}
    assert vision["clip.vision.image_size"] // vision["clip.vision.patch_size"] == 4 * 16
    # Four patches a side are what llama.cpp averages when a file does not say.
    assert "clip.vision.projector.scale_factor" not in vision
    assert vision["clip.vision.projection_dim"] == width
    assert vision["clip.vision.block_count"] == 27
    assert vision["clip.use_gelu"] is True


@published_ones
def test_queries_of_published_sizes_need_no_other_norm(
    tmp_path: Path, published: Published
) -> None:
    """What llama.cpp scales them by is what they were trained with, 1 / root of 168 in the 27B."""
    shapes = tensor_shapes(published.config, published.sizes)
    parts, _ = mapped(tmp_path, published.config, shapes)
    made = {
        target: repr(getattr(rule, "rows", None))
        for rule in parts["text"].rules
        for target in [getattr(rule, "target", "")]
    }
    assert made["blk.0.attn_q_norm.weight"] == made["blk.0.attn_k_norm.weight"]


@pytest.mark.parametrize("name", ["gemma3", "gemma3_untied", "gemma3_62_layers"])
def test_shapes_are_those_that_transformers_saves(name: str) -> None:
    config = RECIPES[name].config
    text = config["text_config"]
    numbers = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    stored = read_golden_json(GOLDENS / name / "weights.json")["tensors"]
    # SigLIP's pooling head, which the published ones lack.
    found = {key: tuple(shape) for key, (shape, _) in stored.items() if ".head." not in key}
    assert found == tensor_shapes(config, " ".join(str(text[number]) for number in numbers))


def assert_same(found: ConversionPlan, expected: ConversionPlan) -> None:
    for ours, theirs in ((found.text, expected.text), (found.mmproj, expected.mmproj)):
        assert dict(ours.types) == dict(theirs.types)
        assert ours.sizes == theirs.sizes
        assert dict(ours.metadata) == dict(theirs.metadata)


@pytest.mark.parametrize(
    "prefixes",
    [
        OF_TRANSFORMERS_4,
        OF_ITS_CLASSES,
        # transformers 4.52 to 4.57 in memory, and what trainers save of it.
        {**OF_ITS_CLASSES, "vision_tower.": "model.vision_tower.vision_model."},
    ],
    ids=["published", "classes of 5", "classes of 4"],
)
@pytest.mark.parametrize("name", ["gemma3", "gemma3_untied"])
def test_other_prefixes_give_the_same_tensors(
    golden: Golden, tmp_path: Path, name: str, prefixes: Mapping[str, str]
) -> None:
    folder = Path(shutil.copytree(golden(name), tmp_path / "checkpoint"))
    rename_tensors(folder, lambda tensor: renamed(tensor, prefixes))
    expected, found = plan_conversion(golden(name)), plan_conversion(folder)
    assert_same(found, expected)
    assert found.ledger.used != expected.ledger.used


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden to change: seven layers, the sixth sees everything."""
    return Path(shutil.copytree(golden("gemma3"), tmp_path / "checkpoint"))


def edit(folder: Path, file: str, changes: Mapping[str, object]) -> Path:
    """Change keys, written as paths; `...` takes one away."""
    config = read_golden_json(folder / file)
    for path, value in changes.items():
        *outer, key = path.split(".")
        place: dict[str, Any] = config
        for part in outer:
            place = place[part]
        if value is ...:
            place.pop(key)
        else:
            place[key] = value
    (folder / file).write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("key", ["sliding_window_pattern", "_sliding_window_pattern", None])
def test_settings_as_transformers_4_wrote_them(
    golden: Golden, checkpoint: Path, key: str | None
) -> None:
    older = {
        f"{T}layer_types": ...,
        f"{T}rope_parameters": ...,
        f"{T}rope_local_base_freq": 50.0,
        f"{T}rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        f"{T}rope_theta": 100.0,
        **({f"{T}{key}": 6} if key else {}),
    }
    found = plan_conversion(edit(checkpoint, "config.json", older))
    assert_same(found, plan_conversion(golden("gemma3")))


@pytest.mark.parametrize(
    ("changes", "pattern", "window"),
    [
        ({}, None, 12),
        ({f"{T}layer_types": [SLIDING, FULL] * 3 + [SLIDING]}, (1, 0, 1, 0, 1, 0, 1), 12),
        ({f"{T}layer_types": [SLIDING] * 7}, (1,) * 7, 12),
        ({f"{T}layer_types": [FULL] * 7}, None, None),
        ({f"{T}layer_types": ..., f"{T}sliding_window_pattern": 3}, (1, 1, 0, 1, 1, 0, 1), 12),
        ({f"{T}layer_types": ..., f"{T}sliding_window_pattern": 1}, None, None),
    ],
)
def test_which_layers_have_a_window(
    checkpoint: Path,
    changes: Mapping[str, object],
    pattern: tuple[int, ...] | None,
    window: int | None,
) -> None:
    keys = plan_conversion(edit(checkpoint, "config.json", changes)).text.metadata
    attention = "gemma3.attention."
    found = keys.get(f"{attention}sliding_window_pattern")
    assert (found and tuple(map(int, found.value))) == pattern  # type: ignore[arg-type]
    found = keys.get(f"{attention}sliding_window")
    assert (found and found.value) == window


REFUSED: list[tuple[dict[str, object], str]] = [
    ({f"{T}hidden_activation": "gelu"}, f"{T}hidden_activation"),
    ({f"{T}attention_bias": True}, f"{T}attention_bias"),
    ({f"{T}use_bidirectional_attention": True}, f"{T}use_bidirectional_attention"),
    ({f"{T}attn_logit_softcapping": 50.0}, f"{T}attn_logit_softcapping"),
    ({f"{T}final_logit_softcapping": 30.0}, f"{T}final_logit_softcapping"),
    ({f"{T}head_dim": 23}, f"{T}head_dim"),
    ({f"{T}sliding_window": 0}, f"{T}sliding_window"),
    ({f"{T}query_pre_attn_scalar": 0}, f"{T}query_pre_attn_scalar"),
    ({f"{T}layer_types": [SLIDING] * 6}, f"{T}layer_types"),
    ({f"{T}layer_types": ["chunked_attention"] * 7}, f"{T}layer_types"),
    ({f"{T}layer_types": ..., f"{T}sliding_window_pattern": 0}, f"{T}sliding_window_pattern"),
    ({f"{T}rope_parameters": {"rope_type": "default"}}, f"{ROPE}rope_type"),
    ({f"{ROPE}{FULL}.rope_type": "yarn"}, f"{ROPE}{FULL}.rope_type"),
    ({f"{ROPE}{SLIDING}.rope_type": "linear"}, f"{ROPE}{SLIDING}.rope_type"),
    ({f"{ROPE}{SLIDING}.partial_rotary_factor": 0.5}, f"{ROPE}{SLIDING}.partial_rotary_factor"),
    ({"mm_tokens_per_image": 15}, "mm_tokens_per_image"),
    ({"mm_tokens_per_image": 9}, "mm_tokens_per_image"),
    ({"mm_tokens_per_image": 256}, "mm_tokens_per_image"),
    ({f"{V}hidden_act": "relu"}, f"{V}hidden_act"),
    ({f"{V}num_channels": 1}, f"{V}num_channels"),
    ({f"{V}intermediate_size": 40}, f"{V}intermediate_size"),
]


@pytest.mark.parametrize(
    ("changes", "key"), REFUSED, ids=[str(list(case[0].items())[-1]) for case in REFUSED]
)
def test_what_the_graph_does_not_compute_is_refused(
    checkpoint: Path, changes: Mapping[str, object], key: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(checkpoint, "config.json", changes))
    assert f"`{key}`" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"resample": 3}, "resample"),
        ({"size.height": 32}, "size.height"),
        ({"do_normalize": False}, "do_normalize"),
    ],
)
def test_pixels_that_the_runtime_makes_otherwise(
    checkpoint: Path, changes: Mapping[str, object], key: str
) -> None:
    with pytest.raises(CheckpointError, match=f"`{key}`"):
        plan_conversion(edit(checkpoint, "preprocessor_config.json", changes))


def test_crops_that_llama_cpp_does_not_make_are_a_loss(checkpoint: Path) -> None:
    edit(checkpoint, "preprocessor_config.json", {"do_pan_and_scan": True})
    (loss,) = plan_conversion(checkpoint).losses
    assert loss.startswith("pan and scan")


@pytest.mark.parametrize("token", ["<start_of_image>", "<end_of_image>"])
def test_a_vocabulary_without_a_token_that_libmtmd_writes(checkpoint: Path, token: str) -> None:
    (checkpoint / "tokenizer.model").unlink(missing_ok=True)
    for path in checkpoint.glob("tokenizer*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(token, "<x>"), encoding="utf-8")
    with pytest.raises(ConversionError, match="needs for images") as caught:
        plan_conversion(checkpoint)
    assert caught.value.hint
