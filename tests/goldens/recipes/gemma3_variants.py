"""Gemma 3 as transformers 4 wrote it: other windows and queries, untied; 62 layers: the 27B."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from edgevlm_convert.metadata import f32
from numpy.typing import NDArray

from tests.convert.mutations import nothing, swap, text, values, without
from tests.goldens.recipe import Config
from tests.goldens.recipes.gemma3 import PREPROCESSOR, RECIPE, TOWER_MUTATIONS

_COMMON = RECIPE.config
_VISION = _COMMON["vision_config"]


def _config(text: Config, vision: Config, *, tied: bool) -> Config:
    outer = {key: value for key, value in _COMMON.items() if key not in ("dtype", "text_config")}
    return {
        **outer,
        "text_config": {
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 2048,
            "model_type": "gemma3_text",
            "rms_norm_eps": 0.02,
            "vocab_size": 320,
            **text,
        },
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vision_config": {**_VISION, **vision},
    }


_HEAD, _HEADS_WIDTH = 16, 12
_GROWTH = math.sqrt(_HEAD / _HEADS_WIDTH)


def _as_it_was(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return weights / np.float32(_GROWTH)


_SCALE = "llama.cpp's graph does not read query_pre_attn_scalar; the norm of queries carries it"
_N_LAYERS = 4
UNTIED = replace(
    RECIPE,
    name="gemma3_untied",
    config=_config(
        {
            "head_dim": _HEAD,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 4,
            "num_hidden_layers": _N_LAYERS,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": _HEADS_WIDTH,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"factor": 4.0, "rope_type": "linear"},
            "rope_theta": 100.0,
            "sliding_window": 9,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": False,
        },
        {"image_size": 128, "vision_use_head": True},
        tied=False,
    ),
    preprocessor={**PREPROCESSOR, "size": {"height": 128, "width": 128}},
    prompts=tuple(
        (name, question, tuple(image.replace("64x64", "128x128") for image in images))
        for name, question, images in RECIPE.prompts
    ),
    free_numbers=(*RECIPE.free_numbers, "sliding_window_pattern"),
    # An average over 16 patches is heard less.
    gains={**RECIPE.gains, "position_embedding": 0.5, "lm_head": 2.0},
    dtype="F32",
    shards=1,
    mended={f"blk.{layer}.attn_q_norm.weight": _SCALE for layer in range(_N_LAYERS)},
    mended_keys={
        "gemma3.attention.sliding_window_pattern": "llama.cpp's converter leaves it out, and its"
        " runtime then takes every sixth layer for one without window"
    },
    mutations={
        **TOWER_MUTATIONS,
        "queries scaled by the head alone": text(values("attn_q_norm", _as_it_was)),
        "every sixth layer without window": text(
            nothing, {"gemma3.attention.sliding_window_pattern": None}
        ),
        "no window": text(nothing, {"gemma3.attention.sliding_window": None}),
        "tied though it is not": text(without("output.weight")),
        "no rotary scaling": text(nothing, {"gemma3.rope.scaling.factor": f32(1.0)}),
        "local base everywhere": text(nothing, {"gemma3.rope.freq_base": f32(50.0)}),
    },
)


def _by_head(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return weights * np.float32(math.sqrt(12 / 8))


# The number of layers tells llama.cpp's graph that a model is the 27B, whose queries it scales by
# the root of the width over the heads: 12 here, while a head has 8 channels.
DEEP = replace(
    RECIPE,
    name="gemma3_62_layers",
    config=_config(
        {
            "head_dim": 8,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 62,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 12,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 20,
        },
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        },
        tied=True,
    ),
    outtypes=("f32",),
    shards=1,
    mutations={
        "queries scaled by the head": text(values("attn_q_norm", _by_head)),
        "norms after each half exchanged": text(swap("post_attention_norm", "post_ffw_norm")),
        "another local rotary base": text(nothing, {"gemma3.rope.freq_base_swa": f32(50.0)}),
        "no window": text(nothing, {"gemma3.attention.sliding_window": None}),
    },
)
