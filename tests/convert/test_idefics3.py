"""Idefics3 and SmolVLM: published configurations, older forms, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.smolvlm_configs import PUBLISHED, Published
from tests.goldens.files import read_golden_json
from tests.tokenizers.byte_level import write_tokenizer_smollm

Golden = Callable[[str], Path]
Config = dict[str, Any]
Change = Callable[[Config], object]


def built(published: Published) -> tuple[Part, Part]:
    """Return the parts of a published configuration: text model and projector."""
    values = {**published.root, "text_config": published.text, "vision_config": published.vision}
    config = Section(values, file="config.json")
    family = find_family(config)
    text_model, text = find_text_model(family, config)
    preprocessor: Config = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "max_image_size": {"longest_edge": published.tile},
        "size": {"longest_edge": published.longest_edge},
    }
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(preprocessor, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    return text_model.build(source), family.projector.build(source)


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_configuration_gives_its_tensors(published: Published) -> None:
    shapes = {
        name: shape
        for part in built(published)
        for rule in part.rules
        for name, shape in rule.shapes.items()
        if rule.required
    }
    assert len(shapes) == published.n_tensors
    n_parameters = sum(math.prod(shape or ()) for shape in shapes.values())
    assert n_parameters == published.n_parameters
    assert "lm_head.weight" in shapes
    assert all(name.startswith(("model.", "lm_head.")) for name in shapes)


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_configuration_gives_its_metadata(published: Published) -> None:
    text, vision = built(published)
    assert vision.losses == ()
    keys: Config = {key: value.value for key, value in vision.late_metadata.items()}
    side = keys["clip.vision.image_size"] // keys["clip.vision.patch_size"]
    scale = keys["clip.vision.projector.scale_factor"]
    assert (side // scale) ** 2 == published.n_visual_tokens
    assert keys["clip.vision.image_size"] == published.tile
    assert keys["clip.vision.preproc_image_size"] == published.longest_edge
    assert keys["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-6)
    assert keys["clip.use_gelu"] is True
    sizes: Config = {key: value.value for key, value in text.metadata.items()}
    head_dim: Any = text.late_metadata["llama.rope.dimension_count"].value
    assert sizes["llama.attention.head_count"] * head_dim == published.text["hidden_size"]
    assert [tensor.name for tensor in text.computed] == (
        ["rope_freqs.weight"] if "rope_scaling" in published.text else []
    )


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of SmolVLM's golden to change."""
    return Path(shutil.copytree(golden("smolvlm"), tmp_path / "checkpoint"))


def changed(checkpoint: Path, file: str, change: Change) -> Path:
    values = read_golden_json(checkpoint / file)
    change(values)
    (checkpoint / file).write_text(json.dumps(values), encoding="utf-8")
    return checkpoint


@pytest.mark.parametrize(
    ("section", "key", "value", "blamed"),
    [
        ("vision_config", "image_size", 96, "max_image_size"),
        ("vision_config", "patch_size", 16, "scale_factor"),
        ("vision_config", "num_channels", 1, "num_channels"),
        ("vision_config", "hidden_act", "relu", "hidden_act"),
        ("vision_config", "intermediate_size", 48, "intermediate_size"),
        (None, "scale_factor", 1, "scale_factor"),
        (None, "scale_factor", 4, "scale_factor"),
    ],
)
def test_a_tower_that_the_graph_does_not_compute(
    checkpoint: Path, section: str | None, key: str, value: Any, blamed: str
) -> None:
    def change(config: Config) -> None:
        (config[section] if section else config)[key] = value

    with pytest.raises(CheckpointError, match=f"`{blamed}|{blamed}`") as caught:
        plan_conversion(changed(checkpoint, "config.json", change))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("do_normalize", False),
        ("resample", 3),
        ("size", {"height": 96, "width": 96}),
        ("size", {"longest_edge": 0}),
        ("max_image_size", {"longest_edge": 364}),
        ("max_image_size", None),
        ("rescale_factor", 1.0),
    ],
)
def test_pixels_that_the_runtime_makes_otherwise(checkpoint: Path, key: str, value: Any) -> None:
    def change(preprocessor: Config) -> None:
        preprocessor[key] = value

    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(changed(checkpoint, "preprocessor_config.json", change))
    assert caught.value.hint


@pytest.mark.parametrize(
    "setting", [{"do_image_splitting": False}, {"size": {"longest_edge": 48}}], ids=str
)
def test_one_tile_is_what_the_runtime_encodes_twice(checkpoint: Path, setting: Config) -> None:
    plan = plan_conversion(
        changed(checkpoint, "preprocessor_config.json", lambda values: values.update(setting))
    )
    assert plan.mmproj.metadata["clip.vision.preproc_image_size"].value == 48
    (loss,) = plan.losses
    assert loss.startswith("one tile")


def test_images_are_scaled_to_no_more_than_transformers_scales_them_to(checkpoint: Path) -> None:
    size = {"size": {"longest_edge": 4848}}
    plan = plan_conversion(
        changed(checkpoint, "preprocessor_config.json", lambda values: values.update(size))
    )
    assert plan.mmproj.metadata["clip.vision.preproc_image_size"].value == 4096


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "siglip_vision_model", None])
def test_older_names_of_the_tower(checkpoint: Path, name: str | None) -> None:
    def change(config: Config) -> None:
        config["vision_config"]["model_type"] = name

    assert plan_conversion(changed(checkpoint, "config.json", change)).family == "idefics3"


def test_image_settings_as_transformers_5_writes_them(checkpoint: Path) -> None:
    old = checkpoint / "preprocessor_config.json"
    before = plan_conversion(checkpoint).mmproj.metadata
    nested = {"image_processor": read_golden_json(old), "image_seq_len": 9}
    (checkpoint / "processor_config.json").write_text(json.dumps(nested), encoding="utf-8")
    old.unlink()
    assert plan_conversion(checkpoint).mmproj.metadata == before


@pytest.mark.parametrize("token", ["\n\n", "<fake_token_around_image>"])
def test_a_vocabulary_without_a_token_that_libmtmd_looks_up(checkpoint: Path, token: str) -> None:
    def leave_out(tokenizer: Config) -> None:
        letters = token.replace("\n", "\u010a")
        vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
        tokenizer["model"]["merges"] = [pair for pair in merges if letters not in "".join(pair)]
        tokenizer["added_tokens"] = [
            entry for entry in tokenizer["added_tokens"] if entry["content"] != token
        ]
        vocab.pop(letters, None)

    write_tokenizer_smollm(checkpoint, declare=False)
    with pytest.raises(ConversionError, match="needs for images") as caught:
        plan_conversion(changed(checkpoint, "tokenizer.json", leave_out))
    assert caught.value.hint


def test_the_overview_may_be_named_in_plain_text(golden: Golden) -> None:
    keys = plan_conversion(golden("idefics3")).text.metadata
    tokens: Any = keys["tokenizer.ggml.tokens"].value
    assert "<global-img>" not in tokens
