"""InternVL over Qwen3: tied; tiles and the whole image, layer scales, biases everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import Change, both, mmproj, nothing, swap, text, values
from tests.goldens.internvl_checkpoints import as_opengvlab
from tests.goldens.recipe import Config, Recipe
from tests.tokenizers.internvl import write_tokenizer_internvl

_N_TOKENS = 300
_TILE = 16
_IMAGE_TOKEN = 297
_CONFIG: Config = {
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "dtype": "bfloat16",
    "image_seq_length": 4,
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": {
        "head_dim": 24,
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 0.02,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "vocab_size": 320,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "attention_bias": True,
        "hidden_act": "gelu",
        "hidden_size": 40,
        "image_size": [_TILE, _TILE],
        "intermediate_size": 72,
        "layer_norm_eps": 0.05,
        "model_type": "internvl_vision",
        "num_attention_heads": 5,
        # llama.cpp's converter takes the 3 of `mlp1.3` for a block's number.
        "num_hidden_layers": 4,
        "patch_size": [4, 4],
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_internvl(folder, n_tokens=_N_TOKENS)


def _rotated_back(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(table, 1, axis=1)


def _column_by_column(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    # The last axis is 2 x 2 patches of channels.
    apart = rows.reshape(*rows.shape[:-1], 2, 2, -1)
    return apart.swapaxes(-3, -2).reshape(rows.shape)


def _merged_otherwise() -> Change:
    return both(
        values("mm.model.mlp.0.weight", _column_by_column),
        values("mm.model.mlp.0.bias", _column_by_column),
        values("mm.model.mlp.1.weight", _column_by_column),
    )


RECIPE = Recipe(
    name="internvl",
    config=_CONFIG,
    preprocessor={
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 6,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "size": {"height": _TILE, "width": _TILE},
    },
    write_tokenizer=_write_tokenizer,
    model_class="InternVLForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=(
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        ("one image", "What is in the image?", ("32x48-1",)),
        ("another image", "What is in the image?", ("32x48-2",)),
        ("two images", "Is the circle in one or in the other?", ("16x16-2", "48x16-3")),
        ("another size", "What is in the image?", ("29x45-4",)),
    ),
    adapt=as_opengvlab,
    outtypes=("auto", "f16"),
    mended={
        "v.position_embd.weight": "llama.cpp gives every patch its neighbour's position",
    },
    seed=20261201,
    # The image, its positions and the tower's activation are heard in the answer.
    gains={
        "cls_token": 6.0,
        "embed_tokens": 0.25,
        "mlp.fc1": 1.3,
        "mlp.fc2": 4.0,
        "position_embeddings": 26.0,
    },
    mutations={
        "positions in the checkpoint's order": mmproj(values("position_embd", _rotated_back)),
        "no class token": mmproj(values("class_embd", np.zeros_like)),
        "layer scales exchanged": mmproj(swap("ls1.", "ls2.")),
        "vision norms exchanged": mmproj(swap("ln1.", "ln2.")),
        "vision query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "vision key and value exchanged": mmproj(swap("attn_k.", "attn_v.")),
        "patches merged column by column": mmproj(_merged_otherwise()),
        "the norm before the projector as it was initialized": mmproj(
            values("mm.model.mlp.0.weight", np.ones_like)
        ),
        "quick-gelu for gelu": mmproj(nothing, {"clip.use_gelu": None}),
        "the usual epsilon of the vision norms": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
        ),
        "pixels normalized otherwise": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "fewer tiles": mmproj(nothing, {"clip.vision.preproc_max_tiles": u32(4)}),
        "head norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "the usual rotary base": text(nothing, {"qwen3.rope.freq_base": f32(10_000.0)}),
        "the usual epsilon": text(nothing, {"qwen3.attention.layer_norm_rms_epsilon": f32(1e-6)}),
    },
)
