"""Published configurations of LLaVA, written out in the form they have: transformers 4's.

From the repositories on the Hugging Face Hub; left out is what only training or generation reads.
They leave out what equals transformers' classes, so the sizes that follow stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.goldens.recipe import Config

_CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
_SIGLIP = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published configuration.

    Attributes:
        config: config.json.
        sizes: width, inner width, layers, heads, KV heads and tokens of its text model.
        n_parameters: of the whole checkpoint.
        n_visual_tokens: of an image.
        losses: how those begin that are stated beside that of images which are not square.
        tied: whether the output matrix is the token embedding.
    """

    config: Config
    sizes: str
    n_parameters: int
    n_visual_tokens: int
    losses: tuple[str, ...] = ()
    tied: bool = False
    architecture: str = "llama"
    keys: Mapping[str, object] = field(default_factory=dict[str, object])


def _clip(text: Config, **more: object) -> Config:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": _CLIP,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": text["vocab_size"],
        **more,
    }


def _interleave(text: Config) -> Config:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 151646,
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": {"model_type": "qwen2", "vocab_size": 152000, **text},
        "torch_dtype": "bfloat16",
        "vision_config": _SIGLIP,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


_VICUNA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
_MISTRAL: Config = {
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
_LLAMA3: Config = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 128320,
}
PUBLISHED: dict[str, Published] = {
    "llava-hf/llava-1.5-7b-hf": Published(
        config=_clip(_VICUNA),
        sizes="4096 11008 32 32 32 32064",
        n_parameters=7_063_427_072,
        n_visual_tokens=576,
        keys={"llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.context_length": 4096},
    ),
    "llava-hf/llava-1.5-13b-hf": Published(
        config=_clip(
            {
                **_VICUNA,
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_attention_heads": 40,
                "num_hidden_layers": 40,
                "num_key_value_heads": 40,
            }
        ),
        sizes="5120 13824 40 40 40 32064",
        n_parameters=13_351_494_656,
        n_visual_tokens=576,
    ),
    "llava-hf/bakLlava-v1-hf": Published(
        config=_clip({**_MISTRAL, "sliding_window": 4096}),
        sizes="4096 14336 32 32 8 32064",
        n_parameters=7_566_743_552,
        n_visual_tokens=576,
        losses=("sliding window",),
    ),
    # No window, which Mistral's class has where a configuration says nothing.
    "a Mistral 0.2": Published(
        config=_clip({**_MISTRAL, "rope_theta": 1000000.0, "sliding_window": None}),
        sizes="4096 14336 32 32 8 32064",
        n_parameters=7_566_743_552,
        n_visual_tokens=576,
        keys={"llama.rope.freq_base": 1e6},
    ),
    "xtuner/llava-llama-3-8b-v1_1-transformers": Published(
        config=_clip(_LLAMA3, image_token_index=128257, pad_token_id=128256),
        sizes="4096 14336 32 32 8 128320",
        n_parameters=8_355_272_704,
        n_visual_tokens=576,
        keys={"llama.rope.freq_base": 500000.0},
    ),
    "llava-hf/llava-interleave-qwen-0.5b-hf": Published(
        config=_interleave(
            {
                "hidden_size": 1024,
                "intermediate_size": 2816,
                "max_window_layers": 21,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "num_key_value_heads": 16,
                "sliding_window": 32768,
                "tie_word_embeddings": True,
            }
        ),
        sizes="1024 2816 24 16 16 152000",
        n_parameters=864_031_264,
        n_visual_tokens=729,
        tied=True,
        architecture="qwen2",
    ),
    "llava-hf/llava-interleave-qwen-7b-hf": Published(
        config=_interleave(
            {
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "max_window_layers": 28,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "num_key_value_heads": 32,
                "sliding_window": 32768,
            }
        ),
        sizes="4096 11008 32 32 32 152000",
        n_parameters=8_141_100_576,
        n_visual_tokens=729,
        architecture="qwen2",
    ),
}
