"""Qianfan-OCR: its published size, both names of its layers, its templates, what is refused.

No hub was at hand: the size is put together from the class's defaults and from what InternVL's
tower of 300 million and Qwen3-4B have.
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
from tests.goldens.files import GOLDENS, read_golden_json

Golden = Callable[[str], Path]
_TEMPLATE = "tokenizer.chat_template"


def test_the_published_size() -> None:
    width, n_layers, head = 2560, 36, 128
    config = Section(
        {
            "architectures": ["QianfanOCRForConditionalGeneration"],
            "image_token_id": 151671,
            "text_config": {
                "head_dim": head,
                "hidden_size": width,
                "intermediate_size": 9728,
                "model_type": "qwen3",
                "num_attention_heads": 32,
                "num_hidden_layers": n_layers,
                "num_key_value_heads": 8,
                "vocab_size": 153678,
            },
            "tie_word_embeddings": False,
            "vision_config": {"model_type": "qianfan_ocr_vision"},
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
    counts = [
        sum(
            math.prod(shape or ())
            for rule in part.rules
            if rule.required
            for shape in rule.shapes.values()
        )
        for part in (text_model.build(source), family.projector.build(source))
    ]
    layer = width * head * (2 * 32 + 2 * 8) + 3 * width * 9728 + 2 * width + 2 * head
    assert counts[0] == 2 * 153678 * width + n_layers * layer + width
    block = 4 * 1024 * 1025 + 2 * 1024 * 4096 + 4096 + 1024 + 6 * 1024
    tower = 24 * block + 1024 * (3 * 14 * 14 + 1) + 1024 + 1025 * 1024
    assert counts[1] == tower + 2 * 4096 + width * 4097 + width * (width + 1)


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("qianfan_ocr"), tmp_path / "checkpoint"))


def test_layers_as_published_and_as_transformers_writes_them_back(checkpoint: Path) -> None:
    stored = read_golden_json(GOLDENS / "qianfan_ocr" / "weights.json")["tensors"]
    assert any(name.startswith("language_model.model.encoder.layers.") for name in stored)
    back = plan_conversion(checkpoint)
    start = "language_model.model."
    rename_tensors(checkpoint, lambda name: name.replace(f"{start}encoder.", start))
    published = plan_conversion(checkpoint)
    assert {one.info for one in back.text.tensors} == {one.info for one in published.text.tensors}


def test_a_template_prints_the_span_that_the_processor_puts_there(checkpoint: Path) -> None:
    own = (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
    assert "<image>" in own
    written = str(plan_conversion(checkpoint).text.metadata[_TEMPLATE].value)
    assert written == own.replace("<image>", "<IMG_CONTEXT>")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "use_mean_pooling", False),
        ("vision_config", "norm_type", "rms_norm"),
        ("vision_config", "use_qk_norm", True),
        ("", "downsample_ratio", 0.3),
        ("", "image_seq_length", 5),
        ("", "vision_feature_layer", -2),
    ],
)
def test_a_tower_that_the_graph_does_not_compute(
    checkpoint: Path, section: str, key: str, value: Any
) -> None:
    path = checkpoint / "config.json"
    config = read_golden_json(path)
    (config[section] if section else config)[key] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=key) as caught:
        plan_conversion(checkpoint)
    assert caught.value.hint
