"""Gemma 3n's configurations as they are published, as far as they are known here.

Layers and widths of E2B and E4B from memory of Google's model cards and of llama.cpp's loader
(src/models/gemma3n.cpp names 30 and 35 layers); what is not named there are the defaults of
transformers' `Gemma3nTextConfig` and `Gemma3nVisionConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.goldens.recipe import Config

_VISION: Config = {
    "architecture": "mobilenetv5_300m_enc",
    "do_pooling": True,
    "hidden_size": 2048,
    "label_names": ["LABEL_0", "LABEL_1"],
    "model_args": None,
    "model_type": "gemma3n_vision",
    "num_classes": 2,
    "rms_norm_eps": 1e-06,
    "vocab_offset": 262144,
    "vocab_size": 128,
}


def _config(n_layers: int, n_ff: int) -> Config:
    kinds = ["sliding_attention"] * 4 + ["full_attention"]
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "eoi_token_id": 262144,
        "image_token_id": 262145,
        "model_type": "gemma3n",
        "text_config": {
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (n_layers - 10),
            "final_logit_softcapping": 30.0,
            "hidden_size": 2048,
            "intermediate_size": [n_ff] * n_layers,
            "layer_types": kinds * (n_layers // 5),
            "model_type": "gemma3n_text",
            "num_hidden_layers": n_layers,
            "num_kv_shared_layers": n_layers - 20,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "vocab_size": 262400,
            "vocab_size_per_layer_input": 262144,
        },
        "vision_config": _VISION,
        "vision_soft_tokens_per_image": 256,
    }


PUBLISHED: Mapping[str, Config] = {"E2B": _config(30, 8192), "E4B": _config(35, 16384)}
# Tensors of transformers' class without sound, and their values, built on its `meta` device from
# the configurations above with timm 1.0.31.
N_PARAMETERS: Mapping[str, tuple[int, int]] = {
    "E2B": (1253, 4_733_770_144),
    "E4B": (1358, 7_133_823_024),
}
