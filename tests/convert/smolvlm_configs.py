"""Published configurations of Idefics3, SmolVLM and SmolVLM2, with the keys that matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published configuration: what its files say where transformers' classes say otherwise.

    Attributes:
        root: of config.json.
        text: text_config.
        vision: vision_config.
        tile, longest_edge: of preprocessor_config.json.
        n_tensors, n_parameters: of the checkpoint, as transformers counts them.
        n_visual_tokens: of a tile, `image_seq_len` of processor_config.json.
    """

    root: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    tile: int
    longest_edge: int
    n_tensors: int
    n_parameters: int
    n_visual_tokens: int


IDEFICS3 = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "model_type": "idefics3",
    "tie_word_embeddings": False,
}
SMOLVLM2 = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "model_type": "smolvlm",
    # Beyond the vocabulary, in the published files too.
    "pad_token_id": 128002,
    "tie_word_embeddings": False,
}
SMOLLM2 = {
    "_flash_attn_2_enabled": True,
    "architectures": ["VLlama3ForCausalLM"],
    "head_dim": 64,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "neftune_noise_alpha": 0.0,
    "pad_token_id": 2,
    "qk_layer_norms": False,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "use_resampler": False,
    "vocab_size": 49280,
}
SMOLLM2_135M = {
    **SMOLLM2,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
}
SMOLLM2_360M = {
    **SMOLLM2,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_attention_heads": 15,
    "num_hidden_layers": 32,
    "num_key_value_heads": 5,
}
# The number of heads is the class's own.
SMOLLM2_1_7B = {
    **SMOLLM2,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 16384,
    "num_hidden_layers": 24,
    "num_key_value_heads": 32,
    "rope_theta": 273768.0,
}
LLAMA_3_8B = {
    "architectures": ["VLlama3ForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128259,
}
SIGLIP_BASE = {
    "hidden_size": 768,
    "image_size": 512,
    "max_image_size": {"longest_edge": 512},
    "num_attention_heads": 12,
    "patch_size": 16,
    "size": {"longest_edge": 2048},
    "tie_word_embeddings": False,
    "use_base_siglip": True,
}
# Width and heads are the class's own.
SIGLIP_SO400M = {"intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
PUBLISHED = {
    "SmolVLM-256M-Instruct": Published(
        root={**IDEFICS3, "scale_factor": 4},
        text=SMOLLM2_135M,
        vision={**SIGLIP_BASE, "model_type": "siglip_vision_model"},
        tile=512,
        longest_edge=2048,
        n_tensors=471,
        n_parameters=256_484_928,
        n_visual_tokens=64,
    ),
    "SmolVLM-500M-Instruct": Published(
        root={**IDEFICS3, "scale_factor": 4},
        text=SMOLLM2_360M,
        vision={**SIGLIP_BASE, "model_type": "idefics3"},
        tile=512,
        longest_edge=2048,
        n_tensors=489,
        n_parameters=507_482_304,
        n_visual_tokens=64,
    ),
    "SmolVLM-Instruct": Published(
        root={**IDEFICS3, "scale_factor": 3},
        text={**SMOLLM2_1_7B, "vocab_size": 49155},
        vision={**SIGLIP_SO400M, "image_size": 384, "model_type": "idefics3"},
        tile=384,
        longest_edge=1536,
        n_tensors=657,
        n_parameters=2_246_272_880,
        n_visual_tokens=81,
    ),
    "SmolVLM2-256M-Video-Instruct": Published(
        root={**SMOLVLM2, "scale_factor": 4},
        text=SMOLLM2_135M,
        vision={**SIGLIP_BASE, "model_type": "smolvlm_vision"},
        tile=512,
        longest_edge=2048,
        n_tensors=471,
        n_parameters=256_484_928,
        n_visual_tokens=64,
    ),
    "SmolVLM2-500M-Video-Instruct": Published(
        root={**SMOLVLM2, "scale_factor": 4},
        text=SMOLLM2_360M,
        vision={**SIGLIP_BASE, "model_type": "smolvlm_vision"},
        tile=512,
        longest_edge=2048,
        n_tensors=489,
        n_parameters=507_482_304,
        n_visual_tokens=64,
    ),
    "SmolVLM2-2.2B-Instruct": Published(
        root={**SMOLVLM2, "scale_factor": 3},
        text=SMOLLM2_1_7B,
        vision={**SIGLIP_SO400M, "image_size": 384, "model_type": "smolvlm_vision"},
        tile=384,
        longest_edge=1536,
        n_tensors=657,
        n_parameters=2_246_784_880,
        n_visual_tokens=81,
    ),
    "Idefics3-8B-Llama3": Published(
        root={**IDEFICS3, "scale_factor": 2},
        text=LLAMA_3_8B,
        vision={**SIGLIP_SO400M, "image_size": 364, "model_type": "idefics3"},
        tile=364,
        longest_edge=1456,
        n_tensors=729,
        n_parameters=8_462_086_384,
        n_visual_tokens=169,
    ),
}
