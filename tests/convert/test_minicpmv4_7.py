"""MiniCPM-V 4.7: MiniCPM-V 4.6's tensors, and the tokens that have places."""

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

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.test_minicpmv4_6 import PUBLISHED as PUBLISHED_4_6
from tests.goldens.files import read_golden_json

Config = dict[str, Any]
MARKERS_KEY = "edgevlm.canvas_markers"
KEYS = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
# openbmb/MiniCPM-V-4.7-1B could not be read: 4.6's sizes, which are those of transformers'
# defaults and of Qwen3.5-0.8B, with ids as 4.6's tokenizer has them from memory.
PUBLISHED: Config = {
    **{key: value for key, value in PUBLISHED_4_6.items() if key != "drop_vision_last_layer"},
    "architectures": ["MiniCPMV4_7ForConditionalGeneration"],
    "image_end_id": 248078,
    "image_start_id": 248077,
    "model_type": "minicpmv4_7",
    "newline_id": 198,
    "slice_end_id": 248088,
    "slice_start_id": 248087,
    "vision_config": {**PUBLISHED_4_6["vision_config"], "model_type": "minicpmv4_7_vision"},
}


def asked(config: Config) -> tuple[dict[str, tuple[int, ...] | None], Config]:
    """Return the tensors that a configuration asks for, and the projector's keys."""
    section = Section(config, file="config.json")
    family = find_family(section)
    text_model, text = find_text_model(family, section)
    preprocessor = Section({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, file="p.json")
    source = Source(config=section, text=text, preprocessor=preprocessor, prefixes=family.prefixes)
    parts = text_model.build(source), family.projector.build(source)
    rules = [rule for part in parts for rule in part.rules]
    shapes = {name: shape for rule in rules for name, shape in rule.shapes.items()}
    return shapes, {key: value.value for key, value in parts[1].late_metadata.items()}


def test_the_published_size_has_the_tensors_of_4_6() -> None:
    (shapes, keys), (old, old_keys) = asked(PUBLISHED), asked(PUBLISHED_4_6)
    assert shapes == old
    assert sum(math.prod(shape) for shape in shapes.values() if shape) > 1e9
    markers = keys.pop(MARKERS_KEY)
    assert list(markers) == [PUBLISHED[key] for key in KEYS]
    assert keys == old_keys


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("minicpmv4_7"), tmp_path / "checkpoint"))


def changed(folder: Path, **values: Any) -> Path:
    config = {**read_golden_json(folder / "config.json"), **values}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_the_projector_names_the_tokens(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint)
    assert plan.family == "minicpmv4_7"
    markers: Any = plan.mmproj.metadata[MARKERS_KEY].value
    tokens: Any = plan.text.metadata["tokenizer.ggml.tokens"].value
    assert [tokens[number] for number in markers] == [
        "<image>", "</image>", "<slice>", "</slice>", "\u010a"
    ]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, -1, "10", True, 1 << 40])
def test_an_id_that_is_none_is_refused(checkpoint: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        plan_conversion(changed(checkpoint, **{key: value}))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [12, 5000])
def test_an_id_of_another_token_is_refused(checkpoint: Path, key: str, value: int) -> None:
    with pytest.raises(ConversionError, match=key) as caught:
        plan_conversion(changed(checkpoint, **{key: value}))
    assert caught.value.hint
