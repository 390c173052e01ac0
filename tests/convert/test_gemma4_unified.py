"""Gemma 4 without towers: sound left out, tokens never sampled, refusals by name."""

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
from tests.convert.published_gemma4_unified import N_PARAMETERS, PUBLISHED
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config

Change = Callable[[Config], object]
GENERATION = "generation_config.json"
SUPPRESSED = "tokenizer.ggml.suppress_tokens"


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the golden to change."""
    return Path(shutil.copytree(golden("gemma4_unified"), tmp_path / "gemma4_unified"))


def changed(folder: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(folder / file)
    change(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def text(**values: Any) -> Change:
    return lambda config: config["text_config"].update(values)


def vision(**values: Any) -> Change:
    return lambda config: config["vision_config"].update(values)


def test_sound_is_left_out_by_name(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint)
    assert set(plan.ledger.dropped) == {"model.embed_audio.embedding_projection.weight"}
    assert plan.losses[0].startswith("sound: ")
    assert "both ways" in plan.losses[1]
    assert not any("audio" in key for key in plan.mmproj.metadata)


def test_the_usual_of_its_class_need_not_be_said(checkpoint: Path) -> None:
    plain = plan_conversion(checkpoint)

    def shorter(config: Config) -> None:
        del config["text_config"]["use_bidirectional_attention"]
        del config["vision_config"]["patch_size"]
        config["vision_config"]["patch_size"] = 4

    assert plan_conversion(changed(checkpoint, shorter)).text.metadata == plain.text.metadata


REFUSED: dict[str, Change] = {
    # No width of this class makes them look back only.
    "use_bidirectional_attention": text(use_bidirectional_attention=None),
    "enable_moe_block": text(enable_moe_block=True),
    "hidden_size_per_layer_input": text(hidden_size_per_layer_input=32),
    "pad_token_id": text(pad_token_id=3),
    "output_proj_dims": vision(output_proj_dims=96),
    "model_patch_size": vision(model_patch_size=16),
    "pooling_kernel_size": vision(pooling_kernel_size=0),
    "mm_embed_dim": vision(mm_embed_dim=-1),
    "mm_posemb_size": vision(mm_posemb_size=1 << 40),
    "rms_norm_eps": vision(rms_norm_eps="small"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(checkpoint: Path, key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(changed(checkpoint, REFUSED[key]))
    assert key in caught.value.message


def test_tokens_that_no_answer_has_are_kept(checkpoint: Path) -> None:
    value = plan_conversion(checkpoint).text.metadata[SUPPRESSED].value
    assert list(value) == [317, 318]  # pyright: ignore[reportArgumentType]
    without = changed(checkpoint, lambda values: values.pop("suppress_tokens"), GENERATION)
    assert SUPPRESSED not in plan_conversion(without).text.metadata


@pytest.mark.parametrize("tokens", [[320], [-1], ["a"], 7])
def test_a_token_that_is_none_is_refused(checkpoint: Path, tokens: object) -> None:
    folder = changed(checkpoint, lambda values: values.update(suppress_tokens=tokens), GENERATION)
    with pytest.raises(CheckpointError, match="suppress_tokens"):
        plan_conversion(folder)


def test_the_published_size_asks_for_the_tensors_of_transformers_class() -> None:
    config = Section(PUBLISHED, file="config.json")
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
    assert (len(asked), sum(map(math.prod, asked.values()))) == N_PARAMETERS
    keys = parts[1].late_metadata
    assert keys["clip.vision.image_max_pixels"].value == 280 * 48**2
    assert keys["clip.vision.embedding_length"].value == 3840
