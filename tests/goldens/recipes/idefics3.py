"""Idefics3 over Llama 3: tied, biases everywhere, rotary factors, tiles that patches do not fill.

As in the published 8B its tokenizer has neither `<global-img>` nor `<row_1_col_1>`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import f32, u32

from tests.convert.mutations import both, mmproj, nothing, swap, text, unpaired, values, without
from tests.goldens.recipe import Config, Recipe
from tests.synthetic import write_json
from tests.tokenizers.byte_level import write_tokenizer_llama3

_N_TOKENS = 300
_TILE, _LONGEST = 44, 132
_IMAGE_TOKEN = 298


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_llama3(folder, n_tokens=_N_TOKENS)


_CONFIG: Config = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "dtype": "float16",
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "idefics3",
    "scale_factor": 3,
    "text_config": {
        "attention_bias": True,
        "head_dim": 16,
        "hidden_size": 96,
        "intermediate_size": 144,
        "max_position_embeddings": 4096,
        "mlp_bias": True,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 2,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 100.0,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
        "vocab_size": 300,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_size": 40,
        "image_size": _TILE,
        "intermediate_size": 72,
        "layer_norm_eps": 0.05,
        "model_type": "idefics3_vision",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 7,
    },
}


def _as_transformers_4(folder: Path) -> None:
    """Write config.json as published: rotary settings in two places, the tower's older name."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text_config = config["text_config"]
    rope = text_config.pop("rope_parameters")
    text_config |= {
        "architectures": ["VLlama3ForCausalLM"],
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
    }
    config["vision_config"]["model_type"] = "idefics3"
    write_json(folder / "config.json", config)


RECIPE = Recipe(
    name="idefics3",
    config=_CONFIG,
    preprocessor={
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": _TILE},
        "size": {"longest_edge": _LONGEST},
    },
    write_tokenizer=_write_tokenizer,
    model_class="Idefics3ForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=(
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        ("one image", "What is in the image?", ("88x132-1",)),
        ("another image", "What is in the image?", ("88x132-2",)),
        ("two images", "Is the circle in one or in the other?", ("44x132-2", "132x88-3")),
        ("another size", "What is in the image?", ("90x57-4",)),
    ),
    pre="llama-bpe",
    adapt=_as_transformers_4,
    dtype="F16",
    seed=20261127,
    # The image and the tower's activation are heard in the answer.
    gains={
        "embed_tokens": 0.3,
        "k_proj.weight": 2.5,
        "self_attn.o_proj": 3.0,
        "mlp.fc1": 1.3,
        "mlp.fc2": 4.0,
    },
    mutations={
        "images scaled to one tile": mmproj(
            nothing, {"clip.vision.preproc_image_size": u32(_TILE)}
        ),
        "the usual epsilon of the vision norms": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
        ),
        "the CLIP towers' activation": mmproj(nothing, {"clip.use_gelu": None}),
        "vision feed-forward biases zero": mmproj(values("ffn_up.bias", np.zeros_like)),
        "vision attention's output bias zero": mmproj(values("attn_out.bias", np.zeros_like)),
        "the last vision norm as it was initialized": mmproj(
            values("v.post_ln.weight", np.ones_like)
        ),
        "vision query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "no rotary factors": text(without("rope_freqs.weight")),
        "rotary factors of the largest kind alone": text(
            values("rope_freqs.weight", lambda row: np.full_like(row, 8.0))
        ),
        "biases of query and key as transformers has them": text(
            both(values("attn_q.bias", unpaired(6)), values("attn_k.bias", unpaired(3)))
        ),
        "rotary rows as transformers has them": text(
            both(values("attn_q.weight", unpaired(6)), values("attn_k.weight", unpaired(3)))
        ),
        "no bias of attention's output": text(
            without("blk.0.attn_output.bias", "blk.1.attn_output.bias")
        ),
        "no bias of the value": text(without("blk.0.attn_v.bias", "blk.1.attn_v.bias")),
        "no bias of the feed-forward network": text(
            without("blk.0.ffn_gate.bias", "blk.1.ffn_down.bias")
        ),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
    },
)
