"""Published configurations of LLaVA-NeXT (LLaVA 1.6), in the form that they have: transformers 4's.

Put together from memory of the repositories on the Hugging Face Hub and of the language models' own
configurations, without the Hub at hand; left out is what only training or generation reads. They
leave out what equals transformers' classes, so the sizes that follow stand beside them. The numbers
of parameters of 7B, 8B and 13B are LLaVA-1.5's and one vector; those of the larger ones are sums.
"""

from __future__ import annotations

from tests.convert.published_llava import Published
from tests.goldens.recipe import Config

GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
# Images that are not square, and what transformers' processor (5.23) counts for them.
N_TOKENS = {(640, 480): 2340, (336, 336): 1176, (1000, 200): 1598}
_VISION = {
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


def _next(text: Config, image_token: int = 32000) -> Config:
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": GRIDS,
        "image_token_index": image_token,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_image_newline_parameter": True,
        "vision_config": _VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": text["vocab_size"],
    }


_LLAMA: Config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_VICUNA: Config = {
    **_LLAMA,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32064,
}
_QWEN: Config = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 8192,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def _published(config: Config, sizes: str, n_parameters: int, **more: object) -> Published:
    architecture = "qwen2" if config["text_config"]["model_type"] == "qwen2" else "llama"
    return Published(
        config=config,
        sizes=sizes,
        n_parameters=n_parameters,
        n_visual_tokens=576,
        architecture=architecture,
        keys={f"{architecture}.{key.replace('__', '.')}": value for key, value in more.items()},
    )


PUBLISHED: dict[str, Published] = {
    "llava-hf/llava-v1.6-vicuna-7b-hf": _published(
        _next(_VICUNA),
        "4096 11008 32 32 32 32064",
        7_063_431_168,
        attention__layer_norm_rms_epsilon=1e-5,
        context_length=4096,
    ),
    "llava-hf/llava-v1.6-vicuna-13b-hf": _published(
        _next(
            {
                **_VICUNA,
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_attention_heads": 40,
                "num_hidden_layers": 40,
                "num_key_value_heads": 40,
            }
        ),
        "5120 13824 40 40 40 32064",
        13_351_499_776,
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": _published(
        _next(
            {
                "architectures": ["MistralForCausalLM"],
                "intermediate_size": 14336,
                "max_position_embeddings": 32768,
                "model_type": "mistral",
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000000.0,
                "sliding_window": None,
                "vocab_size": 32064,
            }
        ),
        "4096 14336 32 32 8 32064",
        7_566_747_648,
        rope__freq_base=1e6,
    ),
    "llava-hf/llava-v1.6-34b-hf": _published(
        _next(
            {
                **_LLAMA,
                "hidden_size": 7168,
                "intermediate_size": 20480,
                "max_position_embeddings": 4096,
                "num_attention_heads": 56,
                "num_hidden_layers": 60,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 5000000.0,
                "vocab_size": 64064,
            },
            64000,
        ),
        "7168 20480 60 56 8 64064",
        34_752_083_968,
        rope__freq_base=5e6,
    ),
    "llava-hf/llama3-llava-next-8b-hf": _published(
        _next(
            {
                **_LLAMA,
                "intermediate_size": 14336,
                "max_position_embeddings": 8192,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 500000.0,
                "vocab_size": 128320,
            },
            128256,
        ),
        "4096 14336 32 32 8 128320",
        8_355_276_800,
        rope__freq_base=5e5,
    ),
    "llava-hf/llava-next-72b-hf": _published(
        _next({**_QWEN, "intermediate_size": 24576, "num_key_value_heads": 64}, 151646),
        "8192 24576 80 64 64 152064",
        72_666_949_632,
        rope__freq_base=1e6,
    ),
    "llava-hf/llava-next-110b-hf": _published(
        _next({**_QWEN, "intermediate_size": 49152, "num_key_value_heads": 8}, 151646),
        "8192 49152 80 64 8 152064",
        111_588_943_872,
        rope__freq_base=1e6,
    ),
}
