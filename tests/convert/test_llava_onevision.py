"""LLaVA-OneVision: published sizes, what its files leave out, and what is refused.

No hub was at hand: the configurations are put together from the class's defaults and from Qwen2's
published sizes.
"""

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
from tests.convert.tricks import rename_tensors
from tests.goldens.files import read_golden_json

Golden = Callable[[str], Path]
TILES = "edgevlm.anyres_max_tiles"
# Width, inner width, layers, heads, KV heads, tokens, whether tied, all parameters in millions.
PUBLISHED = {
    "llava-onevision-qwen2-0.5b-ov": (896, 4864, 24, 14, 2, 152000, True, 894),
    "llava-onevision-qwen2-7b-ov": (3584, 18944, 28, 28, 4, 152128, False, 8030),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_taken(name: str) -> None:
    width, n_ff, n_layers, n_heads, n_kv, n_tokens, tied, n_millions = PUBLISHED[name]
    config = Section(
        {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "image_token_index": 151646,
            "model_type": "llava_onevision",
            "text_config": {
                "hidden_size": width,
                "intermediate_size": n_ff,
                "max_position_embeddings": 32768,
                "model_type": "qwen2",
                "num_attention_heads": n_heads,
                "num_hidden_layers": n_layers,
                "num_key_value_heads": n_kv,
                "vocab_size": n_tokens,
            },
            "tie_word_embeddings": tied,
            "vision_config": {"model_type": "siglip_vision_model"},
        },
        file="config.json",
    )
    family = find_family(config)
    text_model, text = find_text_model(family, config)
    pixels: dict[str, object] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(pixels, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    vision = family.projector.build(source)
    n_parameters = sum(
        math.prod(shape or ())
        for part in (text_model.build(source), vision)
        for rule in part.rules
        if rule.required
        for shape in rule.shapes.values()
    )
    assert round(n_parameters / 1e6) == pytest.approx(n_millions, abs=1)
    keys: dict[str, Any] = {key: value.value for key, value in vision.late_metadata.items()}
    assert keys["clip.vision.image_size"] == 384
    assert list(keys["clip.vision.feature_layer"]) == [26]
    grids = list(keys["clip.vision.image_grid_pinpoints"])
    assert len(grids) == 72
    assert set(grids) == {384 * count for count in range(1, 7)}
    assert keys[TILES] == 9
    (loss,) = vision.losses
    assert loss.startswith("several images in one prompt")


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("llava_onevision"), tmp_path / "checkpoint"))


def changed(checkpoint: Path, key: str, value: object) -> Path:
    path = checkpoint / "config.json"
    config = read_golden_json(path)
    config[key] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    return checkpoint


@pytest.mark.parametrize(
    "value", ["anyres", "anyres_max_0", "anyres_max_145", "anyres_max_-9", "anyres_max_9x", "pad"]
)
def test_a_way_to_shrink_that_is_not_known_is_refused(checkpoint: Path, value: str) -> None:
    with pytest.raises(CheckpointError, match="`vision_aspect_ratio`") as caught:
        plan_conversion(changed(checkpoint, "vision_aspect_ratio", value))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_grid_pinpoints", [[22, 33]]),
        ("vision_feature_select_strategy", "default"),
        ("projector_hidden_act", "relu"),
        ("vision_feature_layer", 9),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(
    checkpoint: Path, key: str, value: object
) -> None:
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(changed(checkpoint, key, value))
    assert caught.value.hint


def test_other_names_of_the_same_tensors(checkpoint: Path) -> None:
    usual = plan_conversion(checkpoint)
    assert all(name.startswith(("language_model", "vision_tower", "multi", "image_newline"))
               for name in usual.ledger.used)  # fmt: skip

    def inner(name: str) -> str:
        return "model." + name.replace("language_model.model.", "language_model.")

    rename_tensors(checkpoint, inner)
    other = plan_conversion(checkpoint)
    for one, two in ((usual.text, other.text), (usual.mmproj, other.mmproj)):
        assert {tensor.info for tensor in one.tensors} == {tensor.info for tensor in two.tensors}
