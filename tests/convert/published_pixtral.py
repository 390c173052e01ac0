"""Configurations in the style in which Pixtral, Mistral Small 3 and Ministral 3 are published.

Written down without the files at hand: the sizes are the models', which keys a file holds may
differ. Keys that do not say anything about the model are left out. transformers 4 wrote
`rope_theta` outside of any `rope_parameters`; pixtral-12b has few keys at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.goldens.recipe import Config


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published model.

    Attributes:
        config: config.json.
        sizes: hidden, intermediate, layers, heads, key heads, head, vocabulary.
        n_parameters: of transformers' class made from the configuration, as its `parameters()`
            count them, with an output matrix of its own unless the configuration says tied.
        architecture: of llama.cpp.
        keys: of the text model's file, behind the architecture.
        n_most: visual tokens of the largest image that its own processor makes.
    """

    config: Config
    sizes: str
    n_parameters: int
    architecture: str
    keys: Config
    n_most: int


_TOWER_12B: Config = {
    "head_dim": 64,
    "hidden_act": "silu",
    "image_size": 1024,
    "model_type": "pixtral",
    "patch_size": 16,
    "rope_theta": 10000.0,
}
_TOWER: Config = {
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "image_size": 1540,
    "intermediate_size": 4096,
    "model_type": "pixtral",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
_MISTRAL3: Config = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "vision_feature_layer": -1,
}


def _small(vision: Config, text: Config) -> Published:
    return Published(
        config={
            **_MISTRAL3,
            "text_config": {
                "attention_dropout": 0.0,
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 5120,
                "intermediate_size": 32768,
                "max_position_embeddings": 131072,
                "model_type": "mistral",
                "num_attention_heads": 32,
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "sliding_window": None,
                "vocab_size": 131072,
                **text,
            },
            "vision_config": {**_TOWER, **vision},
        },
        sizes="5120 32768 40 32 8 128 131072",
        n_parameters=24_011_361_280,
        architecture="mistral3",
        keys={"rope.freq_base": 1e9, "context_length": 131072},
        n_most=3025,
    )


def _ministral(sizes: str, *, theta: float, tied: bool, n_parameters: int) -> Published:
    width, inner, n_layers, *_ = map(int, sizes.split())
    return Published(
        config={
            **_MISTRAL3,
            "text_config": {
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": width,
                "intermediate_size": inner,
                "max_position_embeddings": 262144,
                "model_type": "ministral3",
                "num_attention_heads": 32,
                "num_hidden_layers": n_layers,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_parameters": {
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "factor": 16.0,
                    "llama_4_scaling_beta": 0.1,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 16384,
                    "rope_theta": theta,
                    "rope_type": "yarn",
                    "type": "yarn",
                },
                "sliding_window": None,
                "tie_word_embeddings": tied,
                "vocab_size": 131072,
            },
            "tie_word_embeddings": tied,
            "vision_config": {
                **_TOWER,
                "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        },
        sizes=sizes,
        n_parameters=n_parameters,
        architecture="mistral3",
        keys={
            "rope.freq_base": theta,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 16384,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.1,
        },
        n_most=3025,
    )


PUBLISHED: dict[str, Published] = {
    "pixtral-12b": Published(
        config={
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_seq_length": 1,
            "image_token_index": 10,
            "model_type": "llava",
            "projector_hidden_act": "gelu",
            "text_config": {
                "head_dim": 128,
                "hidden_size": 5120,
                "intermediate_size": 14336,
                "is_composition": True,
                "max_position_embeddings": 1024000,
                "model_type": "mistral",
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000000000.0,
                "sliding_window": None,
                "vocab_size": 131072,
            },
            "vision_config": _TOWER_12B,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        sizes="5120 14336 40 32 8 128 131072",
        n_parameters=12_682_739_712,
        architecture="llama",
        keys={"rope.freq_base": 1e9, "context_length": 1024000, "attention.key_length": 128},
        n_most=4096,
    ),
    "Mistral-Small-3.1-24B": _small({"rope_theta": 10000.0}, {"rope_theta": 1e9}),
    "Mistral-Small-3.2-24B, saved by transformers 5": _small(
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}},
        {"rope_parameters": {"rope_theta": 1e9, "rope_type": "default"}},
    ),
    "Ministral-3-3B": _ministral(
        "3072 9216 26 32 8 128 131072", theta=1e6, tied=True, n_parameters=3_849_090_048
    ),
    "Ministral-3-8B": _ministral(
        "4096 14336 34 32 8 128 131072", theta=1e6, tied=False, n_parameters=8_918_026_240
    ),
    "Ministral-3-14B": _ministral(
        "5120 16384 40 32 8 128 131072", theta=1e9, tied=False, n_parameters=13_945_031_680
    ),
}
