"""Granite-Docling-258M, an Idefics3 over a tied Llama; its successors have a class of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source

from edgevlm.errors import UnsupportedArchitectureError

# As published, what matters of it.
CONFIG: dict[str, Any] = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_token_id": 100270,
    "model_type": "idefics3",
    "scale_factor": 4,
    "text_config": {
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "vocab_size": 100352,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "patch_size": 16,
    },
}
SETTINGS: dict[str, Any] = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "max_image_size": {"longest_edge": 512},
    "size": {"longest_edge": 2048},
}


def test_it_is_taken_whole() -> None:
    config = Section(CONFIG, file="config.json")
    family = find_family(config)
    text_model, text = find_text_model(family, config)
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(SETTINGS, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    parts = text_model.build(source), family.projector.build(source)
    shapes = {
        name: shape
        for part in parts
        for rule in part.rules
        for name, shape in rule.shapes.items()
        if rule.required
    }
    assert family.name == "idefics3"
    assert "lm_head.weight" not in shapes
    assert round(sum(math.prod(shape or ()) for shape in shapes.values()) / 1e6) == 258
    assert [loss for part in parts for loss in part.losses] == []


def test_another_class_of_that_name_is_no_family() -> None:
    """Its tiles have a second path and mergers that no graph of llama.cpp has."""
    other = CONFIG | {"architectures": ["GraniteDoclingForConditionalGeneration"]}
    with pytest.raises(UnsupportedArchitectureError, match="no family knows the architecture"):
        find_family(Section(other, file="config.json"))
