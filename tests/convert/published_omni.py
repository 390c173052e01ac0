"""The configurations of Qwen-Omni as published, put together without a hub.

Sizes are of transformers' defaults (`Qwen2_5OmniConfig` is the 7B's) and of what its documentation
and other programs say of the rest; the nesting and the names of keys are those that transformers
reads. Left out is what only training, sound or speech reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.goldens.recipe import Config

_QWEN2_5_ROPE = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}


def _qwen2_5(numbers: str) -> Config:
    """Return a configuration; `numbers` are width, inner width, layers, heads, KV heads, tokens."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    sizes = dict(zip(keys, map(int, numbers.split()), strict=True))
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "model_type": "qwen2_5_omni",
        "talker_config": {"model_type": "qwen2_5_omni_talker", "vocab_size": 8448},
        "thinker_config": {
            "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
            "audio_config": {"model_type": "qwen2_5_omni_audio_encoder"},
            "audio_token_index": 151646,
            "image_token_index": 151655,
            "model_type": "qwen2_5_omni_thinker",
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "text_config": {
                "hidden_act": "silu",
                "max_position_embeddings": 32768,
                "max_window_layers": sizes["num_hidden_layers"],
                "model_type": "qwen2_5_omni_text",
                "rms_norm_eps": 1e-06,
                "rope_scaling": _QWEN2_5_ROPE,
                "rope_theta": 1000000.0,
                "sliding_window": 32768,
                "use_sliding_window": False,
                **sizes,
            },
            "video_token_index": 151656,
            "vision_config": {
                "depth": 32,
                "embed_dim": 1280,
                "fullatt_block_indexes": [7, 15, 23, 31],
                "hidden_act": "silu",
                "hidden_size": 1280,
                "in_channels": 3,
                "in_chans": 3,
                "intermediate_size": 3420,
                "model_type": "qwen2_5_omni_vision_encoder",
                "num_heads": 16,
                "out_hidden_size": sizes["hidden_size"],
                "patch_size": 14,
                "spatial_merge_size": 2,
                "spatial_patch_size": 14,
                "temporal_patch_size": 2,
                "tokens_per_second": 25,
                "window_size": 112,
            },
            "vision_end_token_id": 151653,
            "vision_start_token_id": 151652,
        },
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
        "torch_dtype": "bfloat16",
    }


QWEN2_5: Mapping[str, Config] = {
    "Qwen2.5-Omni-3B": _qwen2_5("2048 11008 36 16 2 151936"),
    "Qwen2.5-Omni-7B": _qwen2_5("3584 18944 28 28 4 152064"),
}


def _qwen3(*, speaks: bool) -> Config:
    """Return the configuration of 30B-A3B: Instruct, or Thinking and Captioner without a voice."""
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "enable_audio_output": speaks,
        "model_type": "qwen3_omni_moe",
        **({"talker_config": {"model_type": "qwen3_omni_moe_talker"}} if speaks else {}),
        "thinker_config": {
            "audio_config": {"model_type": "qwen3_omni_moe_audio_encoder"},
            "audio_token_id": 151675,
            "image_token_id": 151655,
            "model_type": "qwen3_omni_moe_thinker",
            "position_id_per_seconds": 13,
            "text_config": {
                "attention_bias": False,
                "decoder_sparse_step": 1,
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 2048,
                "intermediate_size": 768,
                "max_position_embeddings": 65536,
                "mlp_only_layers": [],
                "model_type": "qwen3_omni_moe_text",
                "moe_intermediate_size": 768,
                "norm_topk_prob": True,
                "num_attention_heads": 32,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_key_value_heads": 4,
                "rms_norm_eps": 1e-06,
                "rope_scaling": {
                    "interleaved": True,
                    "mrope_section": [24, 20, 20],
                    "rope_type": "default",
                    "type": "default",
                },
                "rope_theta": 1000000,
                "use_sliding_window": False,
                "vocab_size": 152064,
            },
            "video_token_id": 151656,
            "vision_config": {
                "deepstack_visual_indexes": [8, 16, 24],
                "depth": 27,
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": 1152,
                "image_size": 768,
                "in_channels": 3,
                "intermediate_size": 4304,
                "model_type": "qwen3_omni_moe_vision_encoder",
                "num_heads": 16,
                "num_position_embeddings": 2304,
                "out_hidden_size": 2048,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        },
    }


QWEN3: Mapping[str, Config] = {
    "Qwen3-Omni-30B-A3B-Instruct": _qwen3(speaks=True),
    "Qwen3-Omni-30B-A3B-Thinking": _qwen3(speaks=False),
}
