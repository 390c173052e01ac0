"""Gemma 4 without towers: patches that become visual tokens at once, tokens never sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import Mutation, mmproj, nothing, swap, text, values
from tests.goldens.recipe import Recipe
from tests.goldens.recipes.gemma4 import RECIPE as GEMMA4
from tests.synthetic import generation_config, write_json
from tests.tokenizers.gemma4 import write_tokenizer_gemma4

_N_TOKENS = GEMMA4.image_token + 1
_NO_SOUND = "what hears is left out: llama.cpp's converter keeps it"
_TEXT = {
    key: value
    for key, value in GEMMA4.config["text_config"].items()
    if "per_layer_input" not in key
}
_CONFIG = {
    **GEMMA4.config,
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    # llama.cpp's converter refuses a configuration without.
    "audio_config": {
        "audio_embed_dim": 20,
        "model_type": "gemma4_unified_audio",
        "rms_norm_eps": 1e-6,
    },
    "model_type": "gemma4_unified",
    "text_config": {
        **_TEXT,
        # llama.cpp's converter asks for the key.
        "moe_intermediate_size": None,
        "model_type": "gemma4_unified_text",
    },
    "vision_config": {
        "mm_embed_dim": 64,
        "mm_posemb_size": 70,
        "model_type": "gemma4_unified_vision",
        "output_proj_dims": 64,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "rms_norm_eps": 0.5,
    },
}
_PREPROCESSOR = {
    **GEMMA4.preprocessor,
    "image_processor_type": "Gemma4UnifiedImageProcessor",
    "processor_class": "Gemma4UnifiedProcessor",
}
_AUDIO_KEYS = (
    # Which counts parameters, those that hear too.
    "general.size_label",
    "clip.has_audio_encoder",
    *(
        f"clip.audio.{key}"
        for key in (
            "attention.head_count",
            "attention.layer_norm_epsilon",
            "block_count",
            "embedding_length",
            "feed_forward_length",
            "num_mel_bins",
            "projection_dim",
            "projector_type",
        )
    ),
)


def _ones(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ones_like(weights)


def _zeros(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros_like(weights)


def _channels_last(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    side = round((weights.shape[-1] / 3) ** 0.5)
    rows = weights.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return rows.reshape(weights.shape)


def _axes_exchanged(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table[::-1]


_MUTATIONS: dict[str, Mutation] = {
    "channels of patches last": mmproj(values("v.patch_embd.weight", _channels_last)),
    "channels of the first norm last": mmproj(values("v.patch_norm.1.weight", _channels_last)),
    "channels of its bias last": mmproj(values("v.patch_norm.1.bias", _channels_last)),
    "no bias of patches": mmproj(values("v.patch_embd.bias", _zeros)),
    "rows and columns exchanged": mmproj(values("v.position_embd", _axes_exchanged)),
    "norms behind exchanged": mmproj(swap("v.patch_norm.2", "v.patch_norm.3")),
    "last norm of ones": mmproj(values("v.patch_norm.3.weight", _ones)),
    "another epsilon": mmproj(nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}),
    "pixels from -1 to 1": mmproj(
        nothing,
        {
            "clip.vision.image_mean": array("FLOAT32", [0.5] * 3),
            "clip.vision.image_std": array("FLOAT32", [0.1, 0.5, 0.5]),
        },
    ),
    "keys of a layer without window for another": text(swap("blk.1.attn_k.", "blk.3.attn_k.")),
    "all channels rotated": text(values("rope_freqs", _ones)),
    "a window wider by one": text(nothing, {"gemma4.attention.sliding_window": u32(41)}),
}


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_gemma4(folder, n_tokens=_N_TOKENS)
    # As published: the tokens around an image.
    suppressed = {"suppress_tokens": [_N_TOKENS - 3, _N_TOKENS - 2]}
    write_json(folder / "generation_config.json", {**generation_config(), **suppressed})


RECIPE = Recipe(
    name="gemma4_unified",
    config=_CONFIG,
    preprocessor=_PREPROCESSOR,
    write_tokenizer=_write_tokenizer,
    model_class="Gemma4UnifiedForConditionalGeneration",
    image_token=GEMMA4.image_token,
    prompts=GEMMA4.prompts,
    free_numbers=(*GEMMA4.free_numbers, "audio_embed_dim"),
    mended={"mm.a.input_projection.weight": _NO_SOUND},
    mended_keys={
        **dict.fromkeys(_AUDIO_KEYS, _NO_SOUND),
        **GEMMA4.mended_keys,
    },
    mutations=_MUTATIONS,
    outtypes=("auto", "f16"),
    seed=20261201,
    gains={"embed_tokens": 0.15, "q_norm": 0.3, "k_norm": 0.3},
)
