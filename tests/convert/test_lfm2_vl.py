"""LFM2-VL: published configurations, older forms, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.plan import ConversionPlan

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.published_lfm2_vl import PUBLISHED, Published
from tests.convert.tricks import rename_tensors
from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import rewrite

Golden = Callable[[str], Path]
Config = dict[str, Any]
Change = Callable[[Config], object]


def built(published: Published) -> tuple[Part, Part]:
    """Return the parts of a published configuration: text model and projector."""
    values = {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        **published.root,
        "text_config": published.text,
        "vision_config": published.vision,
    }
    config = Section(values, file="config.json")
    family = find_family(config)
    text_model, text = find_text_model(family, config)
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(preprocessor, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    return text_model.build(source), family.projector.build(source)


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_configuration_gives_its_tensors(published: Published) -> None:
    text, vision = built(published)
    shapes = {
        name: shape or ()
        for part in (text, vision)
        for rule in part.rules
        for name, shape in rule.shapes.items()
        if rule.required
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == published.n_parameters
    assert all(name.startswith("model.") for name in shapes)
    keys: Config = {key: value.value for key, value in text.metadata.items()}
    assert keys["lfm2.feed_forward_length"] == published.n_ff
    heads = keys["lfm2.attention.head_count_kv"]
    assert heads.count(8) in (6, 8)
    assert heads.count(0) == published.text["num_hidden_layers"] - heads.count(8)
    assert keys["lfm2.rope.freq_base"] == 1e6
    seen: Config = {key: value.value for key, value in vision.late_metadata.items()}
    assert seen["clip.vision.image_size"] == 256
    assert text.losses == vision.losses == ()


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("lfm2_vl"), tmp_path / "checkpoint"))


def changed(checkpoint: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(checkpoint / file)
    change(values)
    (checkpoint / file).write_text(json.dumps(values), encoding="utf-8")
    return checkpoint


def drop_tensors(checkpoint: Path, names: set[str]) -> None:
    """Write the checkpoint's files again without some of its tensors."""
    rewrite(
        checkpoint,
        lambda weights: {name: one for name, one in weights.items() if name not in names},
    )


def contents(plan: ConversionPlan, folder: Path) -> bytes:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return b"".join(path.read_bytes() for path in paths)


def test_the_names_of_the_first_configurations(checkpoint: Path, tmp_path: Path) -> None:
    def older(config: Config) -> None:
        text = config["text_config"]
        text["block_ff_dim"] = text["intermediate_size"]
        text["intermediate_size"] = 1000
        text["full_attn_idxs"] = [1]
        text["tie_embedding"] = True
        del text["layer_types"]
        del config["tie_word_embeddings"]

    before = contents(plan_conversion(checkpoint), tmp_path)
    assert contents(plan_conversion(changed(checkpoint, older)), tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"intermediate_size": 192, "block_auto_adjust_ff_dim": False}, 192),
        ({"intermediate_size": 288, "block_ffn_dim_multiplier": 1.0}, 192),
        ({"intermediate_size": 240, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 48}, 192),
    ],
    ids=str,
)
def test_the_width_of_feed_forward_networks(checkpoint: Path, settings: Config, width: int) -> None:
    plan = plan_conversion(
        changed(checkpoint, lambda config: config["text_config"].update(settings))
    )
    assert plan.text.metadata["lfm2.feed_forward_length"].value == width


def test_an_output_matrix_of_its_own(checkpoint: Path) -> None:
    def untie(config: Config) -> None:
        config["tie_word_embeddings"] = False

    with pytest.raises(ConversionError, match=r"`lm_head\.weight` is missing"):
        plan_conversion(changed(checkpoint, untie))


def test_two_names_of_one_setting_that_differ(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        plan_conversion(changed(checkpoint, lambda config: config.update(tie_embedding=False)))


def test_a_projector_without_norm(checkpoint: Path) -> None:
    def without(config: Config) -> None:
        config["projector_use_layernorm"] = False

    plan = plan_conversion(changed(checkpoint, without))
    # transformers does not read what is there either.
    norm = {f"model.multi_modal_projector.layer_norm.{kind}" for kind in ("weight", "bias")}
    assert set(plan.ledger.dropped) == norm
    assert not any(tensor.info.name.startswith("mm.input_norm") for tensor in plan.mmproj.tensors)
    drop_tensors(checkpoint, norm)
    assert plan_conversion(checkpoint).ledger.dropped == {}


def test_a_projector_without_biases(checkpoint: Path) -> None:
    def without(config: Config) -> None:
        config["projector_bias"] = False

    changed(checkpoint, without)
    drop_tensors(checkpoint, {f"model.multi_modal_projector.linear_{one}.bias" for one in (1, 2)})
    tensors = {tensor.info.name: tensor for tensor in plan_conversion(checkpoint).mmproj.tensors}
    for name, width in (("mm.1.bias", 80), ("mm.2.bias", 64)):
        assert tensors[name].info.shape == (width,)
        assert not tensors[name].read(0, 1).any()


def test_the_pooling_head_of_a_tower_is_left_out(checkpoint: Path) -> None:
    name = "model.vision_tower.post_layernorm.bias"
    rename_tensors(checkpoint, lambda one: "model.vision_tower.head.probe" if one == name else one)
    with pytest.raises(ConversionError, match=r"post_layernorm\.bias` is missing"):
        plan_conversion(checkpoint)


def test_rows_of_patches_become_a_kernel_slab_by_slab(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint, outtype="f32")
    (kernel,) = (one for one in plan.mmproj.tensors if one.info.name == "v.patch_embd.weight")
    n_rows = math.prod(kernel.info.shape[:-1])
    whole = kernel.read(0, n_rows)
    for step in (1, 7, 48, 100):
        parts = [kernel.read(row, min(row + step, n_rows)) for row in range(0, n_rows, step)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "conv_bias", True),
        ("text_config", "conv_L_cache", 1),
        ("text_config", "layer_types", ["conv", "conv"]),
        ("text_config", "layer_types", ["conv"] * 3),
        ("text_config", "layer_types", ["full_attention"] * 3),
        ("text_config", "layer_types", ["conv", "sliding_attention", "conv"]),
        ("text_config", "head_dim", 32),
        ("vision_config", "num_patches", 255),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "num_channels", 1),
        (None, "downsample_factor", 1),
        (None, "downsample_factor", 3),
        (None, "projector_hidden_act", "relu"),
        (None, "vision_feature_layer", -2),
    ],
)
def test_a_model_that_the_graphs_do_not_compute(
    checkpoint: Path, section: str | None, key: str, value: Any
) -> None:
    def change(config: Config) -> None:
        (config[section] if section else config)[key] = value

    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(changed(checkpoint, change))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("resample", 3),
        ("encoder_patch_size", 14),
        ("downsample_factor", 4),
        ("do_rescale", False),
    ],
)
def test_pixels_that_the_runtime_makes_otherwise(checkpoint: Path, key: str, value: Any) -> None:
    def change(preprocessor: Config) -> None:
        preprocessor[key] = value

    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(changed(checkpoint, change, "preprocessor_config.json"))
    assert caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [{"use_thumbnail": False}, {"do_image_splitting": False}, {"max_image_tokens": 128}],
    ids=str,
)
def test_image_settings_that_the_runtime_has_others_of(checkpoint: Path, setting: Config) -> None:
    changed(checkpoint, lambda values: values.update(setting), "preprocessor_config.json")
    (loss,) = plan_conversion(checkpoint).losses
    ((key, value),) = setting.items()
    assert f"{key} {value}" in loss


@pytest.mark.parametrize("token", ["<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"])
def test_a_vocabulary_without_a_token_that_libmtmd_looks_up(checkpoint: Path, token: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = checkpoint / file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(token, "<|nothing|>"), encoding="utf-8")
    with pytest.raises(ConversionError, match="needs for images") as caught:
        plan_conversion(checkpoint)
    assert caught.value.hint
