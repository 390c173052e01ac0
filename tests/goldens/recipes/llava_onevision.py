"""LLaVA-OneVision: as LLaVA-NeXT over Qwen2, pictures of more than two tiles are shrunk."""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import array, f32, u32

from tests.convert.mutations import mmproj, nothing, swap, text, values
from tests.goldens.llava_checkpoints import (
    IMAGE_TOKEN,
    preprocessor,
    siglip_config,
    write_tokenizer_llava_qwen,
)
from tests.goldens.recipe import Config, Recipe

_SIDE, _PATCH = 22, 5
_GRIDS = [[_SIDE * rows, _SIDE * columns] for rows in (1, 2, 3) for columns in (1, 2)]
_BASE = siglip_config(
    text={
        "model_type": "qwen2",
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    tie_word_embeddings=True,
)
_CONFIG: Config = {
    **_BASE,
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_grid_pinpoints": _GRIDS,
    "model_type": "llava_onevision",
    "video_token_index": IMAGE_TOKEN + 1,
    "vision_aspect_ratio": "anyres_max_2",
    "vision_config": {**_BASE["vision_config"], "image_size": _SIDE, "patch_size": _PATCH},
}
_PINPOINTS = "clip.vision.image_grid_pinpoints"

RECIPE = Recipe(
    name="llava_onevision",
    config=_CONFIG,
    preprocessor={
        **preprocessor(_CONFIG),
        "image_grid_pinpoints": _GRIDS,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
    },
    write_tokenizer=write_tokenizer_llava_qwen,
    model_class="LlavaOnevisionForConditionalGeneration",
    image_token=IMAGE_TOKEN,
    refused="llama.cpp's converter does not know transformers' class",
    prompts=(
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        # Four tiles without some columns: shrunk.
        ("one image", "What is in the image?", ("44x31-1",)),
        ("another image", "What is in the image?", ("44x31-2",)),
        # Six tiles; one, which is shown twice.
        ("two images", "Is the circle in one or in the other?", ("70x40-2", "20x22-3")),
    ),
    free_numbers=("vision_feature_layer", "video_token_index"),
    gains={
        "o_proj": 2.0,
        "patch_embedding": 0.01,
        "position_embedding": 0.005,
        "embed_tokens": 0.25,
        "image_newline": 2.0,
        "mlp.fc2": 6.0,
    },
    seed=13,
    mutations={
        "no newline": mmproj(values("image_newline", np.zeros_like)),
        "one grid for all": mmproj(nothing, {_PINPOINTS: array("INT32", [2 * _SIDE, _SIDE])}),
        "not shrunk": mmproj(nothing, {"edgevlm.anyres_max_tiles": None}),
        "shrunk otherwise": mmproj(nothing, {"edgevlm.anyres_max_tiles": u32(1)}),
        "query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "a block less": mmproj(nothing, {"clip.vision.feature_layer": array("INT32", [2])}),
        "another rotary base": text(nothing, {"qwen2.rope.freq_base": f32(110.0)}),
    },
)
