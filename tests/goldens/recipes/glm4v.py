"""GLM-4.1V: half of a head rotated, biases on query, key and value, positions interpolated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import mmproj, nothing, swap, text, values, without
from tests.goldens.glm_checkpoints import (
    TOKEN_IDS,
    outer_config,
    pairs_apart,
    preprocessor,
    write_glm_tokenizer,
)
from tests.goldens.recipe import PROMPTS, Recipe
from tests.goldens.recipes.glm_ocr import MENDED_KEYS, VISION_MUTATIONS

_HEAD, _ROTATED = 24, 12
# Positions a side: images of the prompts have 6 x 8 and 10 x 4 patches.
_SIDE = 5
_TEXT = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "model_type": "glm4v_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rope_parameters": {
        "mrope_section": [1, 2, 3],
        "partial_rotary_factor": 0.5,
        "rope_theta": 100.0,
        "rope_type": "default",
    },
}
_CONFIG = outer_config(
    "Glm4vForConditionalGeneration",
    "glm4v",
    text=_TEXT,
    vision={
        "attention_bias": False,
        "depth": 3,
        "hidden_size": 48,
        "image_size": _SIDE * 8,
        "intermediate_size": 80,
        "model_type": "glm4v_vision",
        "num_heads": 3,
        "out_hidden_size": 96,
    },
)


def _transposed(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table.reshape(_SIDE, _SIDE, -1).swapaxes(0, 1).reshape(table.shape)


RECIPE = Recipe(
    name="glm4v",
    config=_CONFIG,
    preprocessor=preprocessor(),
    write_tokenizer=write_glm_tokenizer,
    model_class="Glm4vForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    # By its structure; llama.cpp has the same expression under the name of glm4.
    pre="llama-bpe",
    mended_keys=MENDED_KEYS,
    # A side of 41 pixels has as many patches as one of 40.
    free_numbers=(*TOKEN_IDS, "num_heads", "image_size"),
    gains={"embed_tokens": 0.2},
    mutations={
        **VISION_MUTATIONS,
        "positions column by column": mmproj(values("v.position_embd.weight", _transposed)),
        "no positions": mmproj(without("v.position_embd.weight")),
        "no norm behind the patches": mmproj(without("v.norm_embd.weight")),
        "no bias of queries": text(values("attn_q.bias", np.zeros_like)),
        "no bias of values": text(values("attn_v.bias", np.zeros_like)),
        "rotary pairs of queries apart": text(
            values("attn_q.weight", pairs_apart(_ROTATED, _HEAD))
        ),
        "rotary pairs of keys apart": text(values("attn_k.weight", pairs_apart(_ROTATED, _HEAD))),
        "rotary pairs of biases apart": text(values("attn_q.bias", pairs_apart(_ROTATED, _HEAD))),
        "norm behind attention before the MLP": text(swap("post_attention_norm", "ffn_norm")),
        "all of a head rotated": text(nothing, {"glm4.rope.dimension_count": u32(_HEAD)}),
        "rotary sections in another order": text(
            nothing, {"glm4.rope.dimension_sections": array("INT32", [3, 2, 1, 0])}
        ),
        "another rotary base": text(nothing, {"glm4.rope.freq_base": f32(110.0)}),
    },
)

# GLM-4.6V-Flash's twin class, as transformers names it, in the older form of its rotary settings.
GLM46V = replace(
    RECIPE,
    name="glm46v",
    config={
        **_CONFIG,
        "architectures": ["Glm46VForConditionalGeneration"],
        "model_type": "glm46v",
        "text_config": {
            **{key: value for key, value in _CONFIG["text_config"].items() if "rope" not in key},
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"rope_type": "default", "mrope_section": [1, 2, 3]},
            "rope_theta": 100.0,
        },
    },
    model_class="Glm46VForConditionalGeneration",
    prompts=PROMPTS[:3],
    refused="llama.cpp's converter does not know the class",
    mended_keys={},
    seed=20261128,
    mutations={
        "all of a head rotated": text(nothing, {"glm4.rope.dimension_count": u32(_HEAD)}),
        "another rotary base": text(nothing, {"glm4.rope.freq_base": f32(110.0)}),
        "positions column by column": mmproj(values("v.position_embd.weight", _transposed)),
    },
)

_MOE_TEXT = {
    **{key: value for key, value in _TEXT.items() if key != "model_type"},
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 32,
    "hidden_size": 64,
    "model_type": "glm4v_moe_text",
    "moe_intermediate_size": 40,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "rope_parameters": {
        "mrope_section": [2, 3, 3],
        "partial_rotary_factor": 0.5,
        "rope_theta": 100.0,
        "rope_type": "default",
    },
    "routed_scaling_factor": 1.5,
    "topk_group": 1,
}
_MOE_CONFIG = outer_config(
    "Glm4vMoeForConditionalGeneration",
    "glm4v_moe",
    text=_MOE_TEXT,
    vision={
        **_CONFIG["vision_config"],
        "model_type": "glm4v_moe_vision",
        "out_hidden_size": 64,
    },
)

# GLM-4.5V: experts behind a dense layer, rotary pairs half of the rotated rows apart. The router is
# mild: llama.cpp divides by 6e-5 at least where the weights of the chosen experts sum up to less.
MOE = replace(
    RECIPE,
    name="glm4v_moe",
    config=_MOE_CONFIG,
    model_class="Glm4vMoeForConditionalGeneration",
    image_token=_MOE_CONFIG["image_token_id"],
    prompts=PROMPTS[:3],
    outtypes=("auto", "f32"),
    free_numbers=(*RECIPE.free_numbers, "num_experts_per_tok"),
    mended_keys={
        **MENDED_KEYS,
        "tokenizer.ggml.bos_token_id": "llama.cpp's converter calls `[gMASK]` BOS",
        "tokenizer.ggml.eom_token_id": "what ends an answer besides is in a list of ours",
    },
    gains={"embed_tokens": 0.2, "mlp.gate.weight": 4.0},
    # Chosen by the margin of the router, as in qwen3_vl_moe.py.
    seed=20261205,
    mutations={
        "rotary pairs side by side": text(values("attn_k.weight", pairs_apart(16, 32))),
        "all of a head rotated": text(nothing, {"glm4moe.rope.dimension_count": u32(32)}),
        "rotary sections in another order": text(
            nothing, {"glm4moe.rope.dimension_sections": array("INT32", [3, 3, 2, 0])}
        ),
        "experts chosen without their bias": text(values("exp_probs_b", np.zeros_like)),
        "experts by softmax": text(nothing, {"glm4moe.expert_gating_func": u32(1)}),
        "experts without their scale": text(nothing, {"glm4moe.expert_weights_scale": f32(1.0)}),
        "weights of experts as they are": text(
            nothing, {"glm4moe.expert_weights_norm": boolean(False)}
        ),
        "gate and up of experts exchanged": text(swap("ffn_gate_exps", "ffn_up_exps")),
        "gate and up of shared experts exchanged": text(swap("ffn_gate_shexp", "ffn_up_shexp")),
        "norms exchanged": text(swap("attn_norm", "post_attention_norm")),
        "no bias of values": text(values("attn_v.bias", np.zeros_like)),
    },
)
