"""Gemma 3: tied, a window shorter than an image, one layer of seven that sees everything."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32, string, u32
from numpy.typing import NDArray

from tests.convert.mutations import Mutation, mmproj, nothing, swap, text, values, without
from tests.goldens.gemma_checkpoints import as_published
from tests.goldens.recipe import Recipe
from tests.tokenizers.gemma import write_tokenizer_gemma

_N_TOKENS = 300
_CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": _N_TOKENS - 3,
    "dtype": "bfloat16",
    "eoi_token_index": _N_TOKENS - 2,
    "eos_token_id": [1, 9],
    "image_token_index": _N_TOKENS - 1,
    "mm_tokens_per_image": 16,
    "model_type": "gemma3",
    "text_config": {
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 96,
        "intermediate_size": 160,
        "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
        "max_position_embeddings": 2048,
        "model_type": "gemma3_text",
        "num_attention_heads": 6,
        "num_hidden_layers": 7,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 0.02,
        "rope_parameters": {
            "full_attention": {"factor": 8.0, "rope_theta": 100.0, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
        },
        "sliding_window": 12,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
        "vocab_size": 320,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 40,
        "image_size": 64,
        "intermediate_size": 72,
        "layer_norm_eps": 0.1,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 5,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": 8,
        "vision_use_head": False,
    },
}
PREPROCESSOR = {
    "do_pan_and_scan": None,
    "image_mean": [0.5, 0.45, 0.4],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 16,
    "image_std": [0.5, 0.25, 0.3],
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "size": {"height": 64, "width": 64},
}
PROMPTS = (
    ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What is in the image?", ("64x64-1",)),
    ("another image", "What is in the image?", ("64x64-2",)),
    ("two images", "Is the circle in one or in the other?", ("64x64-2", "64x64-3")),
)
_SCALING = "gemma3.rope.scaling."
_NORMS = (
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
    "output_norm",
)


def _less_one(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return weights - np.float32(1)


def _by_columns(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return weights.reshape(weights.shape[::-1]).T


def transposed(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a table of positions with rows and columns of the image exchanged."""
    side = math.isqrt(len(table))
    return table.reshape(side, side, -1).swapaxes(0, 1)


TOWER_MUTATIONS: dict[str, Mutation] = {
    "query and key of the tower exchanged": mmproj(swap("attn_q.", "attn_k.")),
    "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
    "no norm behind the last block": mmproj(without("v.post_ln.weight", "v.post_ln.bias")),
    "no bias of patches": mmproj(values("v.patch_embd.bias", np.zeros_like)),
    "positions column by column": mmproj(values("v.position_embd", transposed)),
    "tower's norms with another epsilon": mmproj(
        nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
    ),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
    "projector's norm around zero": mmproj(values("mm.soft_emb_norm", _less_one)),
    "projection column by column": mmproj(values("mm.input_projection", _by_columns)),
}


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_gemma(folder, n_tokens=_N_TOKENS)


RECIPE = Recipe(
    name="gemma3",
    config=_CONFIG,
    preprocessor=PREPROCESSOR,
    write_tokenizer=_write_tokenizer,
    model_class="Gemma3ForConditionalGeneration",
    image_token=_N_TOKENS - 1,
    prompts=PROMPTS,
    adapt=as_published,
    free_numbers=(
        "boi_token_index",
        "eoi_token_index",
        "query_pre_attn_scalar",
        "sliding_window",
    ),
    mutations={
        **{f"{name} around zero": text(values(f"{name}.", _less_one)) for name in _NORMS},
        **TOWER_MUTATIONS,
        "quick-gelu for gelu": mmproj(nothing, {"clip.use_gelu": None}),
        "four patches averaged for two": mmproj(
            nothing, {"clip.vision.projector.scale_factor": None}
        ),
        "norms before each half exchanged": text(swap("attn_norm", "ffn_norm")),
        "norms after each half exchanged": text(swap("post_attention_norm", "post_ffw_norm")),
        "head norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "another epsilon": text(nothing, {"gemma3.attention.layer_norm_rms_epsilon": f32(1e-6)}),
        "no rotary scaling": text(
            nothing, {f"{_SCALING}type": string("none"), f"{_SCALING}factor": None}
        ),
        "another rotary base": text(nothing, {"gemma3.rope.freq_base": f32(1e6)}),
        "another local rotary base": text(nothing, {"gemma3.rope.freq_base_swa": None}),
        "a window wider by one": text(nothing, {"gemma3.attention.sliding_window": u32(13)}),
        "no window": text(nothing, {"gemma3.attention.sliding_window": None}),
        "a window in every layer": text(
            nothing, {"gemma3.attention.sliding_window_pattern": array("BOOL", [True] * 7)}
        ),
    },
    shards=2,
    seed=20261127,
    # Rows times the root of the width: as large as what the layers add.
    gains={"embed_tokens": 0.15, "q_norm": 0.2, "k_norm": 0.2, "mlp.fc1": 2.0, "mlp.fc2": 3.0},
)
