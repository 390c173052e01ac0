"""HunYuanVL: two query heads a key head, heads that do not fill the width, a table of 9 x 9."""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import array, f32
from numpy.typing import NDArray

from tests.convert.mutations import mmproj, nothing, swap, text, values
from tests.goldens.recipe import Config, Recipe
from tests.tokenizers.hunyuan import (
    ASSISTANT,
    BEFORE,
    BEHIND,
    BOS,
    HUNYUAN_LAST,
    IMAGE,
    PAD,
    write_tokenizer_hunyuan,
)

_N_TOKENS = 300
_PATCH, _SIDE, _N_EMBD = 8, 72, 40


def _id(token: str) -> int:
    return _N_TOKENS - len(HUNYUAN_LAST) + HUNYUAN_LAST.index(token)


_CONFIG: Config = {
    "architectures": ["HunYuanVLForConditionalGeneration"],
    "dtype": "bfloat16",
    "im_end_id": _id(BEHIND),
    "im_newline_id": _id(IMAGE),
    "im_start_id": _id(BEFORE),
    "image_token_id": _id(IMAGE),
    "model_type": "hunyuan_vl",
    "text_config": {
        "attention_bias": False,
        "bos_token_id": _id(BOS),
        "eod_token_id": _id(ASSISTANT),
        "eos_token_id": _id(ASSISTANT),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 160,
        "max_position_embeddings": 2048,
        "model_type": "hunyuan_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": _id(PAD),
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "alpha": 8.0,
            "factor": 1.0,
            "mrope_section": [4, 3, 4, 5],
            "rope_theta": 100.0,
            "rope_type": "dynamic",
        },
        "tie_word_embeddings": True,
        "vocab_size": _N_TOKENS + 20,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": _N_EMBD,
        "intermediate_size": 72,
        "interpolate_mode": "bilinear",
        "max_image_size": _SIDE,
        "model_type": "hunyuan_vl_vision",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "patch_size": _PATCH,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "text_hidden_size": 96,
    },
}


def _column_by_column(table: NDArray[np.float32]) -> NDArray[np.float32]:
    side = _SIDE // _PATCH
    return table.reshape(side, side, -1).swapaxes(0, 1).reshape(table.shape)


RECIPE = Recipe(
    name="hunyuan_vl",
    config=_CONFIG,
    preprocessor={
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "HunYuanVLImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "max_pixels": 65536,
        "merge_size": 2,
        "min_pixels": 1024,
        "patch_size": _PATCH,
        "resample": 1,
        "temporal_patch_size": 1,
    },
    write_tokenizer=lambda folder: write_tokenizer_hunyuan(folder, n_tokens=_N_TOKENS),
    model_class="HunYuanVLForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    pre="deepseek-v3",
    free_numbers=("im_end_id", "im_newline_id", "im_start_id", "eod_token_id"),
    gains={"embed_tokens": 0.2},
    mutations={
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "positions column by column": mmproj(values("v.position_embd.weight", _column_by_column)),
        "positions with the class token's": mmproj(
            values("v.position_embd.weight", lambda table: np.roll(table, 1, axis=0))
        ),
        "no bias of the patches": mmproj(values("v.patch_embd.bias", np.zeros_like)),
        "norms of a block exchanged": mmproj(swap(".ln1.", ".ln2.")),
        "query and key of the tower exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "patches merged column by column": mmproj(
            values("mm.0.weight", lambda kernel: kernel.swapaxes(2, 3))
        ),
        "no norm before the merger": mmproj(values("mm.pre_norm.weight", np.ones_like)),
        "no newline": mmproj(values("v.image_newline", np.zeros_like)),
        "begin and end exchanged": mmproj(swap("mm.image_begin", "mm.image_end")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "heads normalized alone": text(values("attn_q_norm.weight", np.ones_like)),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "rotary sections in another order": text(
            nothing, {"hunyuan_vl.rope.dimension_sections": array("INT32", [5, 4, 3, 4])}
        ),
        "the base not stretched": text(nothing, {"hunyuan_vl.rope.scaling.alpha": f32(1.0)}),
        "another rotary base": text(nothing, {"hunyuan_vl.rope.freq_base": f32(110.0)}),
        "another epsilon": text(
            nothing, {"hunyuan_vl.attention.layer_norm_rms_epsilon": f32(1e-2)}
        ),
    },
)
