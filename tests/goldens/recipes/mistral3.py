"""Mistral 3 over Ministral 3: patches merged, yarn, queries that grow with positions."""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import boolean, f32, string
from numpy.typing import NDArray

from tests.convert.mutations import mmproj, nothing, text, values
from tests.goldens.recipe import Recipe
from tests.goldens.recipes.pixtral import (
    GAINS,
    IMAGE_TOKEN,
    LANGUAGE,
    MENDED,
    PREPROCESSOR,
    TEXT,
    TOWER,
    VISION,
)
from tests.tokenizers.byte_level import write_tokenizer_tekken

_SCALING = "mistral3.rope.scaling."


def _patches_side_by_side(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo that a merged patch goes channel by channel, its four patches inside of each."""
    return rows.reshape(len(rows), -1, 4).swapaxes(1, 2).reshape(rows.shape)


RECIPE = Recipe(
    name="mistral3",
    config={
        "architectures": ["Mistral3ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": IMAGE_TOKEN,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": {
            **TEXT,
            "model_type": "ministral3",
            "rope_parameters": {
                "beta_fast": 2.0,
                "beta_slow": 0.5,
                "factor": 4.0,
                "llama_4_scaling_beta": 0.3,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 40,
                "rope_theta": 100.0,
                "rope_type": "yarn",
            },
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        # Merged two by two they are as large as Pixtral's.
        "vision_config": {**VISION, "hidden_act": "silu", "patch_size": 8},
        "vision_feature_layer": -1,
    },
    preprocessor={**PREPROCESSOR, "patch_size": {"height": 8, "width": 8}},
    write_tokenizer=write_tokenizer_tekken,
    model_class="Mistral3ForConditionalGeneration",
    image_token=IMAGE_TOKEN,
    pre="tekken",
    free_numbers=("image_size",),
    mended=MENDED,
    gains=GAINS,
    shards=2,
    seed=3,
    mutations={
        **TOWER,
        **LANGUAGE,
        "gelu for silu": mmproj(nothing, {"clip.use_gelu": boolean(True), "clip.use_silu": None}),
        "merged patches one after the other": mmproj(
            values("mm.patch_merger", _patches_side_by_side)
        ),
        "no weights in the norm before merging": mmproj(values("mm.input_norm", np.ones_like)),
        "another rotary base": text(nothing, {"mistral3.rope.freq_base": f32(110.0)}),
        "no rotary scaling": text(nothing, {f"{_SCALING}type": string("none")}),
        "another attention factor": text(nothing, {f"{_SCALING}yarn_log_multiplier": None}),
        "the usual fast beta": text(nothing, {f"{_SCALING}yarn_beta_fast": None}),
        "the usual slow beta": text(nothing, {f"{_SCALING}yarn_beta_slow": None}),
        "queries of one size": text(nothing, {"mistral3.attention.temperature_scale": None}),
    },
)
