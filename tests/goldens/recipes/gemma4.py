"""Gemma 4: two kinds of heads, shared keys, embeddings of every layer, a clipped tower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import Mutation, mmproj, nothing, swap, text, values, without
from tests.goldens.recipe import Recipe
from tests.tokenizers.gemma4 import write_tokenizer_gemma4

_N_TOKENS = 320
_SLIDING, _FULL = "sliding_attention", "full_attention"
_CONFIG = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_config": None,
    "boi_token_id": _N_TOKENS - 3,
    "dtype": "bfloat16",
    "eoi_token_id": _N_TOKENS - 2,
    "eos_token_id": [1],
    "image_token_id": _N_TOKENS - 1,
    "model_type": "gemma4",
    "text_config": {
        "attention_bias": False,
        "attention_k_eq_v": True,
        "final_logit_softcapping": 4.0,
        "global_head_dim": 48,
        "head_dim": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 96,
        "hidden_size_per_layer_input": 32,
        "intermediate_size": 128,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL, _SLIDING, _FULL],
        "max_position_embeddings": 2048,
        "model_type": "gemma4_text",
        "num_attention_heads": 4,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 0.02,
        "rope_parameters": {
            _FULL: {
                "partial_rotary_factor": 0.25,
                "rope_theta": 100.0,
                "rope_type": "proportional",
            },
            _SLIDING: {"rope_theta": 50.0, "rope_type": "default"},
        },
        "sliding_window": 40,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": "vision",
        "use_double_wide_mlp": True,
        "vocab_size": _N_TOKENS,
        "vocab_size_per_layer_input": _N_TOKENS,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "intermediate_size": 80,
        "model_type": "gemma4_vision",
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 210,
        "rms_norm_eps": 0.02,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "axial"},
        "standardize": True,
        "use_clipped_linears": True,
    },
}
_PREPROCESSOR = {
    "do_normalize": False,
    "image_mean": [0.0, 0.0, 0.0],
    "image_processor_type": "Gemma4ImageProcessor",
    "image_std": [1.0, 1.0, 1.0],
    "max_soft_tokens": 70,
    "patch_size": 4,
    "pooling_kernel_size": 3,
    "processor_class": "Gemma4Processor",
    "resample": 3,
}
_PROMPTS = (
    ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What is in the image?", ("84x120-1",)),
    ("another image", "What is in the image?", ("84x120-2",)),
    ("two images", "Is the circle in one or in the other?", ("84x120-2", "120x84-3")),
)
_NORMS = (
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
    "output_norm",
    "per_layer_proj_norm",
)


def _ones(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ones_like(weights)


def _channels_first(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    n, _, side, _ = weights.shape
    return weights.transpose(0, 2, 3, 1).reshape(n, 3, side, side)


def _axes_exchanged(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table[::-1]


def _halves_exchanged(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(weights, weights.shape[1] // 2, axis=1)


_MUTATIONS: dict[str, Mutation] = {
    **{f"{name} of ones": text(values(f"{name}.", _ones)) for name in _NORMS},
    "layers without scale": text(values("layer_output_scale", _ones)),
    "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
    "all channels rotated": text(values("rope_freqs", _ones)),
    "norms of the layers' own embeddings of ones": text(values(".post_norm", _ones)),
    "another epsilon": text(nothing, {"gemma4.attention.layer_norm_rms_epsilon": f32(1e-6)}),
    "another rotary base": text(nothing, {"gemma4.rope.freq_base": f32(1e6)}),
    "another local rotary base": text(nothing, {"gemma4.rope.freq_base_swa": f32(1e6)}),
    "a window wider by one": text(nothing, {"gemma4.attention.sliding_window": u32(41)}),
    "logits without cap": text(nothing, {"gemma4.final_logit_softcapping": None}),
    "query and key of the tower exchanged": mmproj(swap("attn_q.", "attn_k.")),
    "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
    "norms behind halves exchanged": mmproj(swap("attn_post_norm", "ffn_post_norm")),
    "channels of patches last": mmproj(values("v.patch_embd.weight", _channels_first)),
    "rows and columns exchanged": mmproj(values("v.position_embd", _axes_exchanged)),
    "tower's norms with another epsilon": mmproj(
        nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
    ),
    "quick-gelu for gelu": mmproj(nothing, {"clip.use_gelu": None}),
    "tokens not standardized": mmproj(without("v.std_bias", "v.std_scale")),
    "no bounds of inputs": mmproj(values(".input_max", lambda bound: bound * np.float32(1e3))),
    "no bounds of outputs": mmproj(values(".output_min", lambda bound: bound * np.float32(1e3))),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
}


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_gemma4(folder, n_tokens=_N_TOKENS)


RECIPE = Recipe(
    name="gemma4",
    config=_CONFIG,
    preprocessor=_PREPROCESSOR,
    write_tokenizer=_write_tokenizer,
    model_class="Gemma4ForConditionalGeneration",
    image_token=_N_TOKENS - 1,
    prompts=_PROMPTS,
    free_numbers=("boi_token_id", "eoi_token_id", "sliding_window"),
    mended_keys={
        "clip.use_gelu": "without it llama.cpp computes quick-gelu, transformers gelu",
        "clip.vision.image_max_pixels": "what images are stretched to here",
        "clip.vision.attention.layer_norm_epsilon": "llama.cpp's converter asks a key that no"
        " Gemma 4 has",
    },
    mutations=_MUTATIONS,
    shards=2,
    seed=20261128,
    gains={
        "embed_tokens": 0.15,
        "q_norm": 0.3,
        "k_norm": 0.3,
        # The tower's gates must be where gelu and quick-gelu differ, and be heard.
        "gate_proj.linear": 4.0,
        "gate_proj.output_min": 3.0,
        "gate_proj.output_max": 0.1,
        "encoder.layers.0.post_feedforward_layernorm": 3.0,
        "encoder.layers.1.post_feedforward_layernorm": 3.0,
    },
)

_TEXT = {
    **RECIPE.config["text_config"],
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
    "layer_types": [_SLIDING, _SLIDING, _FULL],
    "moe_intermediate_size": 40,
    "num_experts": 6,
    "num_hidden_layers": 3,
    "num_kv_shared_layers": 0,
    "top_k_experts": 2,
    "use_double_wide_mlp": False,
}
MOE = replace(
    RECIPE,
    name="gemma4_moe",
    free_numbers=(*RECIPE.free_numbers, "top_k_experts", "vocab_size_per_layer_input"),
    config={
        **_CONFIG,
        "text_config": _TEXT,
        "vision_config": {
            **RECIPE.config["vision_config"],
            "standardize": False,
            "use_clipped_linears": False,
        },
    },
    mutations={
        "gates and ups of experts exchanged": text(values("ffn_gate_up_exps", _halves_exchanged)),
        "no scales of experts": text(values("ffn_down_exps.scale", _ones)),
        "no scales of the router": text(values("ffn_gate_inp.scale", _ones)),
        "norm before experts of ones": text(values("pre_ffw_norm_2", _ones)),
        "norms behind both halves exchanged": text(swap("post_ffw_norm_1", "post_ffw_norm_2")),
        "one expert for two": text(nothing, {"gemma4.expert_used_count": u32(1)}),
        "values of another matrix": text(swap("blk.0.attn_k.", "blk.0.attn_v.")),
    },
    gains={
        "embed_tokens": 0.15,
        "q_norm": 0.3,
        "k_norm": 0.3,
        "experts.gate_up_proj": 16.0,
        "experts.down_proj": 12.0,
        "router.proj": 3.0,
    },
    seed=20261129,
)
