"""Gemma 4's configurations as they are published, as far as they are known here.

Layers, widths and heads of E2B, 26B-A4B and 31B from memory of Google's model cards and of
llama.cpp's converter and loader (src/models/gemma4.cpp names 30, 35, 42 and 60 layers); what is not
named there are the defaults of transformers' `Gemma4TextConfig` and `Gemma4VisionConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.goldens.recipe import Config

_SLIDING, _FULL = "sliding_attention", "full_attention"
_TOWER: Config = {"model_type": "gemma4_vision", "use_clipped_linears": True}


def _kinds(n_layers: int, every: int) -> list[str]:
    return [_SLIDING if (layer + 1) % every else _FULL for layer in range(n_layers)]


PUBLISHED: Mapping[str, Config] = {
    "E2B": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "image_token_id": 258880,
        "model_type": "gemma4",
        "text_config": {
            "final_logit_softcapping": 30.0,
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "layer_types": _kinds(35, 5),
            "model_type": "gemma4_text",
            "num_hidden_layers": 35,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 20,
            "use_bidirectional_attention": None,
            "use_double_wide_mlp": True,
        },
        "vision_config": _TOWER,
    },
    "26B-A4B": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "image_token_id": 258880,
        "model_type": "gemma4",
        "text_config": {
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "final_logit_softcapping": 30.0,
            "hidden_size": 2816,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 2112,
            "model_type": "gemma4_text",
            "moe_intermediate_size": 704,
            "num_attention_heads": 16,
            "num_experts": 128,
            "num_global_key_value_heads": 2,
            "num_key_value_heads": 8,
            "sliding_window": 1024,
            "top_k_experts": 8,
            "use_bidirectional_attention": "vision",
        },
        "vision_config": {
            "hidden_size": 1152,
            "head_dim": 72,
            "intermediate_size": 4304,
            "model_type": "gemma4_vision",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "standardize": True,
        },
    },
    "31B": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "image_token_id": 258880,
        "model_type": "gemma4",
        "text_config": {
            "attention_k_eq_v": True,
            "final_logit_softcapping": 30.0,
            "hidden_size": 5376,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 21504,
            "layer_types": _kinds(60, 6),
            "model_type": "gemma4_text",
            "num_attention_heads": 32,
            "num_global_key_value_heads": 4,
            "num_hidden_layers": 60,
            "num_key_value_heads": 16,
            "sliding_window": 1024,
            "use_bidirectional_attention": "vision",
        },
        "vision_config": {
            "hidden_size": 1152,
            "head_dim": 72,
            "intermediate_size": 4304,
            "model_type": "gemma4_vision",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "standardize": True,
        },
    },
}
# Tensors of transformers' class without its tower for sound, and their values, built on its
# `meta` device from the configurations above.
N_PARAMETERS: Mapping[str, tuple[int, int]] = {
    "E2B": (1199, 4_797_114_083),
    "26B-A4B": (1013, 25_805_936_206),
    "31B": (1188, 31_273_088_876),
}
