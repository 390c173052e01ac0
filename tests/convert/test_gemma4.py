"""Gemma 4: what transformers 5 saves, sound left out, refusals by name."""

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
from edgevlm_convert.family import Source

from edgevlm.errors import CheckpointError
from tests.convert.published_gemma4 import N_PARAMETERS, PUBLISHED
from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import Weights, rewrite
from tests.goldens.recipe import Config

Change = Callable[[Config], object]


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the golden to change."""
    return Path(shutil.copytree(golden("gemma4"), tmp_path / "gemma4"))


def changed(folder: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(folder / file)
    change(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def text(**values: Any) -> Change:
    return lambda config: config["text_config"].update(values)


def vision(**values: Any) -> Change:
    return lambda config: config["vision_config"].update(values)


def test_heads_layer_by_layer_are_those_of_published_files(checkpoint: Path) -> None:
    """transformers 5 writes `per_layer_config` in the place of two numbers."""
    published = plan_conversion(checkpoint)

    def saved_again(config: Config) -> None:
        section = config["text_config"]
        del section["global_head_dim"], section["num_global_key_value_heads"]
        heads = {"head_dim": 48, "num_key_value_heads": 1}
        section["per_layer_config"] = {layer: heads for layer in ("1", "3", "5")}

    saved = plan_conversion(changed(checkpoint, saved_again))
    assert saved.text.metadata == published.text.metadata
    assert [tensor.info for tensor in saved.text.tensors] == [
        tensor.info for tensor in published.text.tensors
    ]


def test_sound_and_keys_that_no_layer_reads_are_left_out(checkpoint: Path) -> None:
    sound = ("model.audio_tower.layers.0.norm_out.weight", "model.embed_audio.x.weight")
    stem = "model.language_model.layers.4.self_attn."
    unread = tuple(f"{stem}{name}.weight" for name in ("k_proj", "v_proj", "k_norm"))
    plain = plan_conversion(checkpoint)
    assert plain.losses == ()

    def grown(weights: Weights) -> Weights:
        one = weights["model.language_model.norm.weight"]
        return {**weights, **dict.fromkeys((*sound, *unread), one)}

    rewrite(checkpoint, grown)
    plan = plan_conversion(checkpoint)
    assert set(plan.ledger.dropped) == {*sound, *unread}
    assert plan.text.metadata == plain.text.metadata
    assert plan.losses[0].startswith("sound: ")


REFUSED: dict[str, Change] = {
    "use_bidirectional_attention": text(use_bidirectional_attention=None),
    "num_kv_shared_layers": text(num_kv_shared_layers=3),
    "pad_token_id": text(pad_token_id=3),
    "hidden_activation": text(hidden_activation="silu"),
    "per_layer_config": text(per_layer_config={"1": {"head_dim": 48}}),
    "partial_rotary_factor": text(
        rope_parameters={"full_attention": {"partial_rotary_factor": 2.0, "rope_theta": 100.0}}
    ),
    "vocab_size_per_layer_input": text(vocab_size_per_layer_input=319),
    "num_key_value_heads": vision(num_key_value_heads=1),
    "rope_theta": vision(rope_parameters={"rope_theta": 10.0}),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(checkpoint: Path, key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(changed(checkpoint, REFUSED[key]))
    assert key in caught.value.message


def test_a_budget_that_no_gemma_4_has_is_refused(checkpoint: Path) -> None:
    folder = changed(
        checkpoint, lambda values: values.update(max_soft_tokens=71), "preprocessor_config.json"
    )
    with pytest.raises(CheckpointError, match="max_soft_tokens"):
        plan_conversion(folder)


def test_tokens_of_channels_are_shown_in_answers(checkpoint: Path) -> None:
    metadata = plan_conversion(checkpoint).text.metadata
    tokens: Any = metadata["tokenizer.ggml.tokens"].value
    types: Any = metadata["tokenizer.ggml.token_type"].value
    kinds = dict(zip(tokens, types, strict=True))
    assert (kinds["<|channel>"], kinds["<|turn>"], kinds["<0x0A>"]) == (4, 3, 6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_ask_for_the_tensors_of_transformers_class(name: str) -> None:
    config = Section(PUBLISHED[name], file="config.json")
    family = find_family(config)
    text_model, section = find_text_model(family, config)
    source = Source(
        config=config,
        text=section,
        preprocessor=Section({}, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    parts = text_model.build(source), family.projector.build(source)
    asked = {
        tensor: shape
        for part in parts
        for rule in part.rules
        for tensor, shape in rule.shapes.items()
        if shape is not None
    }
    assert (len(asked), sum(map(math.prod, asked.values()))) == N_PARAMETERS[name]
    keys = {**parts[0].metadata, **parts[0].late_metadata}
    assert keys["gemma4.attention.key_length"].value == 512
    assert keys["gemma4.attention.key_length_swa"].value == 256
    assert parts[1].late_metadata["clip.vision.image_max_pixels"].value == 280 * 48**2
