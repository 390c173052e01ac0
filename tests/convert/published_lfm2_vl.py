"""What the published LFM2-VL and LFM2.5-VL say of themselves, and their counts of parameters.

The first three are as transformers 4 wrote them, LFM2.5-VL as 5 does. No hub was at hand: the count
of LFM2-VL-450M was looked up, the others hold what these sizes give, so that a change is seen; and
where attention stands among the layers of the 2.6B text model, which changes no count, is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model.

    Attributes:
        text: of text_config.
        vision: of vision_config.
        root: keys of config.json itself.
        n_parameters: of all its tensors.
        n_ff: width inside a feed-forward network.
    """

    text: Config
    vision: Config
    n_parameters: int
    n_ff: int
    root: Config = field(default_factory=Config)


_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "model_type": "siglip2_vision_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vision_use_head": False,
}
_LARGE = {
    **_BASE,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_patches": 256,
    "patch_size": 16,
}
_ATTENTION = [2, 5, 8, 10, 12, 14]
_TEXT_350M = {
    "block_auto_adjust_ff_dim": True,
    "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "full_attn_idxs": _ATTENTION,
    "hidden_size": 1024,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "vocab_size": 65536,
}
_TEXT_1_2B = {
    **_TEXT_350M,
    "block_ff_dim": 12288,
    "hidden_size": 2048,
    "num_attention_heads": 32,
}
_TEXT_2_6B = {
    **_TEXT_1_2B,
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": 10752,
    "full_attn_idxs": [2, 5, 9, 13, 17, 21, 24, 27],
    "num_hidden_layers": 30,
}


def _as_transformers_5(text: Config) -> Config:
    layers = range(text["num_hidden_layers"])
    attention = text["full_attn_idxs"]
    return {
        **{
            key: value for key, value in text.items() if key not in ("full_attn_idxs", "rope_theta")
        },
        "layer_types": ["full_attention" if layer in attention else "conv" for layer in layers],
        "rope_parameters": {"rope_theta": text["rope_theta"], "rope_type": "default"},
    }


_NEWER = {"projector_hidden_size": 2048, "projector_use_layernorm": False}
PUBLISHED = {
    "LFM2-VL-450M": Published(text=_TEXT_350M, vision=_BASE, n_parameters=450_822_656, n_ff=4608),
    "LFM2-VL-1.6B": Published(
        text=_TEXT_1_2B,
        vision={**_LARGE, "num_hidden_layers": 26},
        n_parameters=1_584_804_000,
        n_ff=8192,
    ),
    "LFM2-VL-3B": Published(text=_TEXT_2_6B, vision=_LARGE, n_parameters=2_998_975_216, n_ff=10752),
    "LFM2.5-VL-450M": Published(
        text=_as_transformers_5(_TEXT_350M),
        vision=_BASE,
        root=_NEWER,
        n_parameters=448_718_848,
        n_ff=4608,
    ),
    "LFM2.5-VL-1.6B": Published(
        text=_as_transformers_5(_TEXT_1_2B),
        vision=_LARGE,
        root=_NEWER,
        n_parameters=1_596_625_904,
        n_ff=8192,
    ),
}
