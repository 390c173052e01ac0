"""LightOnOCR: Pixtral's tower without ends of rows, Qwen3, images whose longer side is the usual.

Smaller images are another loss, which tests/runtime/test_lighton.py measures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import boolean, f32

from tests.convert.mutations import mmproj, nothing, swap, text, values
from tests.goldens.recipe import Recipe
from tests.goldens.recipes.pixtral import PREPROCESSOR, TEXT, TOWER, VISION
from tests.synthetic import write_json
from tests.synthetic_tokenizer import tokenizer_json, write_tokenizer

_N_TOKENS = 300
LONGEST = 64


def _token_id(name: str) -> int:
    added = {token["content"]: token["id"] for token in tokenizer_json(_N_TOKENS)["added_tokens"]}
    return added[name]


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, n_tokens=_N_TOKENS)
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8")
    template = template.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    path.write_text(template, encoding="utf-8")


def _as_published(folder: Path) -> None:
    """Name the classes as published, which llama.cpp's converter looks for."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["LightOnOCRForConditionalGeneration"]
    config["text_config"]["architectures"] = ["Qwen3ForCausalLM"]
    write_json(folder / "config.json", config)


RECIPE = Recipe(
    name="lighton_ocr",
    config={
        "architectures": ["LightOnOcrForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": _token_id("<|image_pad|>"),
        "model_type": "lighton_ocr",
        "spatial_merge_size": 2,
        "text_config": {
            **TEXT,
            "model_type": "qwen3",
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "vocab_size": _N_TOKENS + 20,
        },
        "tie_word_embeddings": False,
        "vision_config": {**VISION, "hidden_act": "silu", "image_size": LONGEST, "patch_size": 8},
    },
    preprocessor={
        **PREPROCESSOR,
        "patch_size": {"height": 16, "width": 16},
        "size": {"longest_edge": LONGEST},
    },
    write_tokenizer=_write_tokenizer,
    model_class="LightOnOcrForConditionalGeneration",
    image_token=_token_id("<|image_pad|>"),
    adapt=_as_published,
    free_numbers=("image_size",),
    gains={"embed_tokens": 0.2},
    mutations={
        **{name: one for name, one in TOWER.items() if name != "rows without their end"},
        "vision norms with another epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(0.3)}
        ),
        "gelu for silu": mmproj(nothing, {"clip.use_gelu": boolean(True), "clip.use_silu": None}),
        "no weights in the norm before merging": mmproj(values("mm.input_norm", np.ones_like)),
        "query and key norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
        "norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "another rotary base": text(nothing, {"qwen3.rope.freq_base": f32(110.0)}),
        "another epsilon": text(nothing, {"qwen3.attention.layer_norm_rms_epsilon": f32(0.01)}),
    },
)
