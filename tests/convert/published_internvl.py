"""The configurations of InternVL 2.5, 3 and 3.5 as published, in the form that transformers has.

From the repositories of OpenGVLab on the Hugging Face Hub; left out is what only training or
generation reads. Most are there in OpenGVLab's form too (`opengvlab_config` makes one of these).
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.goldens.recipe import Config

_SMALL_TOWER: Config = {
    "attention_bias": True,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "use_qk_norm": False,
}
_LARGE_TOWER: Config = {
    "attention_bias": False,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "use_qk_norm": True,
}
SETTINGS: Config = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "size": {"height": 448, "width": 448},
}


def _config(text: Config, *, large: bool) -> Config:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "dtype": "bfloat16",
        "image_seq_length": 256,
        "image_token_id": 151667 if text["model_type"] == "qwen2" else 151671,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": {
            **(_LARGE_TOWER if large else _SMALL_TOWER),
            "hidden_act": "gelu",
            "image_size": [448, 448],
            "layer_norm_eps": 1e-06,
            "model_type": "internvl_vision",
            "patch_size": [14, 14],
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _text(numbers: str) -> Config:
    """Return a text model; `numbers` are width, inner width, layers, heads, KV heads."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    return {
        **dict(zip(keys, map(int, numbers.split()), strict=True)),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "use_sliding_window": False,
    }


def _qwen2(numbers: str, *, large: bool = False) -> Config:
    text = _text(numbers)
    text |= {
        "head_dim": text["hidden_size"] // text["num_attention_heads"],
        "max_position_embeddings": 32768,
        "model_type": "qwen2",
        "sliding_window": None,
        "vocab_size": 151674,
    }
    return _config(text, large=large)


def _qwen3(numbers: str, *, large: bool = False, inner: int = 0) -> Config:
    text = _text(numbers) | {
        "attention_bias": False,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "model_type": "qwen3_moe" if inner else "qwen3",
        "vocab_size": 151936,
    }
    if inner:
        text |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": inner,
            "norm_topk_prob": True,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        }
    return _config(text, large=large)


PUBLISHED: Mapping[str, Config] = {
    "InternVL2_5-1B": _qwen2("896 4864 24 14 2"),
    "InternVL2_5-4B": _qwen2("2048 11008 36 16 2"),
    "InternVL2_5-38B": _qwen2("5120 27648 64 40 8", large=True),
    "InternVL2_5-78B": _qwen2("8192 29568 80 64 8", large=True),
    "InternVL3-2B": _qwen2("1536 8960 28 12 2"),
    "InternVL3-8B": _qwen2("3584 18944 28 28 4"),
    "InternVL3-14B": _qwen2("5120 13824 48 40 8"),
    "InternVL3_5-1B": _qwen3("1024 3072 28 16 8"),
    "InternVL3_5-2B": _qwen3("2048 6144 28 16 8"),
    "InternVL3_5-4B": _qwen3("2560 9728 36 32 8"),
    "InternVL3_5-8B": _qwen3("4096 12288 36 32 8"),
    "InternVL3_5-14B": _qwen3("5120 17408 40 40 8"),
    "InternVL3_5-38B": _qwen3("5120 25600 64 64 8", large=True),
    "InternVL3_5-30B-A3B": _qwen3("2048 6144 48 32 4", inner=768),
    "InternVL3_5-241B-A28B": _qwen3("4096 12288 94 64 4", inner=1536, large=True),
}
# As the model cards say, in billions; InternVL3-1B, -38B and -78B have the shapes of 2.5's.
N_BILLION: Mapping[str, float] = {
    "InternVL2_5-1B": 0.94,
    "InternVL2_5-4B": 3.71,
    "InternVL2_5-38B": 38.4,
    "InternVL2_5-78B": 78.4,
    "InternVL3-2B": 2.09,
    "InternVL3-8B": 7.94,
    "InternVL3-14B": 15.1,
    "InternVL3_5-1B": 1.1,
    "InternVL3_5-2B": 2.3,
    "InternVL3_5-4B": 4.7,
    "InternVL3_5-8B": 8.5,
    "InternVL3_5-14B": 15.1,
    "InternVL3_5-38B": 38.4,
    "InternVL3_5-30B-A3B": 30.8,
    "InternVL3_5-241B-A28B": 240.7,
}
