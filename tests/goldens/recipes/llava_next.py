"""LLaVA-NeXT: tiles of 4 x 4 patches with something left over, joined in grids of up to three."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from edgevlm_convert.metadata import array, f32

from tests.convert.mutations import Mutation, mmproj, nothing, swap, text, unpaired, values
from tests.goldens.llava_checkpoints import (
    IMAGE_TOKEN,
    clip_config,
    preprocessor,
    read_as_it_is,
    siglip_config,
)
from tests.goldens.recipe import Config, Recipe
from tests.tokenizers.llama_spm import write_tokenizer_llava, write_tokenizer_llava_mistral

_REFUSED = "llama.cpp's converter does not know transformers' class"
_PINPOINTS = "clip.vision.image_grid_pinpoints"
# Rows and columns of tiles: of the published ones those that are others when they are turned.
_SHAPES = ((1, 2), (2, 2), (3, 1))
# So that the image is heard beside the words.
_GAINS = {
    "o_proj": 2.0,
    "patch_embedding": 0.01,
    "position_embedding": 0.005,
    "class_embedding": 0.005,
    "embed_tokens": 0.02,
    "image_newline": 2.0,
    "mlp.fc2": 6.0,
}


def _grids(side: int) -> list[list[int]]:
    """Return heights and widths of grids."""
    return [[side * rows, side * columns] for rows, columns in _SHAPES]


def _next(config: Config, side: int, patch: int) -> Config:
    return {
        **config,
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": _grids(side),
        "model_type": "llava_next",
        "vision_config": {**config["vision_config"], "image_size": side, "patch_size": patch},
    }


def _preprocessor(config: Config) -> Config:
    side = config["vision_config"]["image_size"]
    return {
        **preprocessor(config),
        "crop_size": {"height": side, "width": side},
        "image_grid_pinpoints": config["image_grid_pinpoints"],
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
    }


def _layout(side: int) -> dict[str, Mutation]:
    turned = [side * size for rows, columns in _SHAPES for size in (rows, columns)]
    return {
        "no newline": mmproj(values("image_newline", np.zeros_like)),
        "grids turned": mmproj(nothing, {_PINPOINTS: array("INT32", turned)}),
        "one grid for all": mmproj(nothing, {_PINPOINTS: array("INT32", [3 * side, side])}),
        "query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
    }


def _recipe(name: str, config: Config, **more: Any) -> Recipe:
    return Recipe(
        name=f"llava_next_{name}",
        config=config,
        preprocessor=_preprocessor(config),
        model_class="LlavaNextForConditionalGeneration",
        image_token=IMAGE_TOKEN,
        refused=_REFUSED,
        prompts=(
            ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
            # Columns are left out at both sides.
            ("one image", "What is in the image?", ("44x31-1",)),
            ("another image", "What is in the image?", ("44x31-2",)),
            # Rows are left out above and below, of the square columns.
            ("two images", "Is the circle in one or in the other?", ("13x71-2", "25x25-3")),
        ),
        **more,
    )


SIGLIP_LLAMA = _recipe(
    "siglip_llama",
    _next(
        siglip_config(
            text={
                "model_type": "llama",
                "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
            },
        ),
        22,
        5,
    ),
    write_tokenizer=write_tokenizer_llava,
    gains=_GAINS,
    free_numbers=("vision_feature_layer",),
    mutations={
        **_layout(22),
        "a block less": mmproj(nothing, {"clip.vision.feature_layer": array("INT32", [2])}),
        "another rotary base": text(nothing, {"llama.rope.freq_base": f32(110.0)}),
    },
)
CLIP_MISTRAL = _recipe(
    "clip_mistral",
    _next(
        clip_config(
            text={
                "head_dim": 24,
                "model_type": "mistral",
                "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
                "sliding_window": None,
            },
        ),
        25,
        6,
    ),
    write_tokenizer=write_tokenizer_llava_mistral,
    gains=_GAINS,
    free_numbers=("projection_dim", "vision_feature_layer"),
    mutations={
        **_layout(25),
        "no class token": mmproj(values("class_embd", np.zeros_like)),
        "a block less": mmproj(nothing, {"clip.vision.feature_layer": array("INT32", [1])}),
        "queries in transformers' order": text(values("attn_q.weight", unpaired(6))),
    },
)


VIDEO = replace(
    CLIP_MISTRAL,
    name="llava_next_video",
    config={
        **CLIP_MISTRAL.config,
        "architectures": ["LlavaNextVideoForConditionalGeneration"],
        "model_type": "llava_next_video",
        "video_token_index": IMAGE_TOKEN + 1,
    },
    write_tokenizer=read_as_it_is(write_tokenizer_llava_mistral),
    prompts=CLIP_MISTRAL.prompts[:3],
    # Of one size of images a grid that is turned is the same.
    mutations={
        name: mutation
        for name, mutation in CLIP_MISTRAL.mutations.items()
        if name != "grids turned"
    },
    model_class="LlavaNextVideoForConditionalGeneration",
    free_numbers=(*CLIP_MISTRAL.free_numbers, "video_token_index"),
)
RECIPES = (SIGLIP_LLAMA, CLIP_MISTRAL, VIDEO)
