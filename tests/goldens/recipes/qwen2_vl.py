"""Qwen2-VL: untied; then small goldens of two rotary scaling types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, string

from tests.convert.mutations import instead, mmproj, nothing, swap, text, values, without
from tests.goldens.qwen2_checkpoints import qwen2_config, write_qwen_tokenizer
from tests.goldens.recipe import PROMPTS, Config, Recipe
from tests.synthetic import preprocessor_config

_SECTIONS = {"mrope_section": [4, 6, 6], "rope_theta": 100.0}


def _config(**rope: object) -> Config:
    return qwen2_config(
        "Qwen2VL",
        text={
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "rope_parameters": {**_SECTIONS, **rope},
        },
        vision={
            "depth": 4,
            "embed_dim": 48,
            "hidden_act": "quick_gelu",
            "hidden_size": 128,
            "mlp_ratio": 2,
            "num_heads": 3,
            "patch_size": 8,
        },
        tied=False,
    )


RECIPE = Recipe(
    name="qwen2_vl",
    config=_config(rope_type="default"),
    preprocessor=preprocessor_config(8),
    write_tokenizer=write_qwen_tokenizer,
    model_class="Qwen2VLForConditionalGeneration",
    image_token=_config()["image_token_id"],
    free_numbers=("num_heads",),
    gains={"patch_embed": 0.01, "fc2.weight": 3.0, "merger.mlp.2.weight": 8.0},
    shards=2,
    seed=20261126,
    mended_keys={
        "clip.vision.feed_forward_length": "llama.cpp writes the text model's width; we write the"
        " tower's own, which the memory prediction reads",
    },
    mutations={
        "one frame of the patch kernel twice": mmproj(
            instead("v.patch_embd.weight.1", "v.patch_embd.weight")
        ),
        "query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "key and value exchanged": mmproj(swap("attn_k.", "attn_v.")),
        "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
        "norm of the last block as merger norm": mmproj(swap("v.blk.3.ln1.", "v.post_ln.")),
        "vision norms with another epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-5)}
        ),
        "gelu for quick-gelu": mmproj(nothing, {"clip.use_gelu": boolean(True)}),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "tied though it is not": text(without("output.weight")),
        "no bias on queries": text(values("attn_q.bias", np.zeros_like)),
        "no bias on values": text(values("attn_v.bias", np.zeros_like)),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "rotary sections in another order": text(
            nothing, {"qwen2vl.rope.dimension_sections": array("INT32", [6, 4, 6, 0])}
        ),
        "another rotary base": text(nothing, {"qwen2vl.rope.freq_base": f32(110.0)}),
    },
)


def _without_epsilon(model: Any) -> None:
    """Do what this llama.cpp does with every norm of the text model."""
    for module in model.model.language_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0


# Embeddings as small as those of trained models: with the epsilon the KLD is 1.5e-4, of 1e-5 2e-2.
EPSILON = replace(
    RECIPE,
    name="qwen2_vl_epsilon",
    prompts=PROMPTS[:3],
    outtypes=(),
    shards=1,
    gains={**RECIPE.gains, "embed_tokens": 0.015},
    emulate=_without_epsilon,
    mutations={},
)

_SCALING = "qwen2vl.rope.scaling."
_SHORT = replace(RECIPE, prompts=PROMPTS[:3], outtypes=("f32",), shards=1)

LINEAR = replace(
    _SHORT,
    name="qwen2_vl_linear",
    config=_config(rope_type="linear", factor=4.0),
    mutations={
        "no scaling": text(nothing, {f"{_SCALING}type": string("none"), f"{_SCALING}factor": None}),
        "yarn": text(nothing, {f"{_SCALING}type": string("yarn")}),
        "another factor": text(nothing, {f"{_SCALING}factor": f32(4.2)}),
    },
)

_ATTENTION = "llama.cpp's converter writes a key that its runtime never reads for this architecture"
YARN = replace(
    _SHORT,
    name="qwen2_vl_yarn",
    config=_config(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=512,
        attention_factor=1.3,
        beta_fast=32.0,
        beta_slow=1,
    ),
    free_numbers=("num_heads",),
    mended_keys={
        **_SHORT.mended_keys,
        f"{_SCALING}attn_factor": _ATTENTION,
        f"{_SCALING}yarn_attn_factor": _ATTENTION,
    },
    mutations={
        "linear": text(nothing, {f"{_SCALING}type": string("linear")}),
        "the usual attention factor": text(nothing, {f"{_SCALING}attn_factor": None}),
        "llama.cpp's key": text(
            nothing, {f"{_SCALING}attn_factor": None, f"{_SCALING}yarn_attn_factor": f32(1.3)}
        ),
        "attention factor itself": text(nothing, {f"{_SCALING}attn_factor": f32(1.3)}),
        "the whole context as the original one": text(
            nothing, {f"{_SCALING}original_context_length": None}
        ),
    },
)
