"""Janus-Pro and DeepSeek-VL: one graph, other names; what draws images is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32
from numpy.typing import NDArray

from tests.convert.mutations import Mutation, mmproj, nothing, swap, text, unpaired, values, without
from tests.goldens.recipe import Config, Recipe
from tests.tokenizers.deepseek import write_tokenizer_deepseek_vl, write_tokenizer_janus

_N_TOKENS = 300
_SIDE = 48
_IMAGE_TOKEN = _N_TOKENS - 1
_N_HEAD, _N_HEAD_KV = 4, 2
_TEXT: Config = {
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": _N_HEAD,
    "num_hidden_layers": 2,
    "num_key_value_heads": _N_HEAD_KV,
    "rms_norm_eps": 0.02,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "vocab_size": _N_TOKENS + 20,
}
_TOWER: Config = {
    "hidden_size": 40,
    "image_size": _SIDE,
    "layer_norm_eps": 0.2,
    "num_attention_heads": 5,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
}
_CODES: Config = {
    "base_channels": 32,
    "channel_multiplier": [1],
    "embed_dim": 4,
    "image_token_embed_dim": 16,
    "latent_channels": 8,
    "model_type": "janus_vqgan",
    "num_embeddings": 8,
    "num_res_blocks": 1,
    "projection_dim": 16,
}
_JANUS: Config = {
    "architectures": ["JanusForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "janus",
    "text_config": _TEXT,
    "tie_word_embeddings": False,
    "vision_config": {
        **_TOWER,
        "attention_bias": True,
        "depth": 2,
        "hidden_act": "gelu",
        "mlp_ratio": 1.8,
        "model_type": "janus_vision_model",
        "num_image_tokens": (_SIDE // 8) ** 2,
        "projection_dim": 64,
        "use_qk_norm": False,
    },
    "vq_config": _CODES,
}
_DEEPSEEK: Config = {
    "architectures": ["DeepseekVLForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "deepseek_vl",
    "text_config": {**_TEXT, "tie_word_embeddings": True},
    "tie_word_embeddings": True,
    "vision_config": {
        **_TOWER,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 72,
        "model_type": "siglip_vision_model",
        "vision_use_head": True,
    },
}
_PROMPTS = (
    ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What is in the image?", (f"{_SIDE}x{_SIDE}-1",)),
    ("another image", "What is in the image?", (f"{_SIDE}x{_SIDE}-2",)),
    ("two images", "Is the circle in one or in the other?", ("48x48-2", "48x48-3")),
)


def _pixels(kind: str) -> Config:
    return {
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": f"{kind}ImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "min_size": 14,
        "processor_class": f"{kind}Processor",
        "resample": 3,
        "size": {"height": _SIDE, "width": _SIDE},
    }


def _column_by_column(table: NDArray[np.float32]) -> NDArray[np.float32]:
    side = _SIDE // 8
    return table.reshape(side, side, -1).swapaxes(0, 1).reshape(table.shape)


_MUTATIONS: dict[str, Mutation] = {
    "positions column by column": mmproj(values("position_embd", _column_by_column)),
    "no bias of patches": mmproj(values("v.patch_embd.bias", np.zeros_like)),
    "query and key of the tower exchanged": mmproj(swap("attn_q.", "attn_k.")),
    "key and value of the tower exchanged": mmproj(swap("attn_k.", "attn_v.")),
    "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
    "no norm behind the last block": mmproj(without("v.post_ln.weight", "v.post_ln.bias")),
    "no bias of the first layer behind it": mmproj(values("mm.0.bias", np.zeros_like)),
    "no bias of the second": mmproj(values("mm.1.bias", np.zeros_like)),
    "quick-gelu for gelu": mmproj(nothing, {"clip.use_gelu": None}),
    "tower's norms with the usual epsilon": mmproj(
        nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
    ),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
    "query rows in the checkpoint's order": text(values("attn_q.weight", unpaired(_N_HEAD))),
    "key rows in the checkpoint's order": text(values("attn_k.weight", unpaired(_N_HEAD_KV))),
    "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
    "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
    "the usual rotary base": text(nothing, {"llama.rope.freq_base": f32(10_000.0)}),
    "the usual epsilon": text(nothing, {"llama.attention.layer_norm_rms_epsilon": f32(1e-6)}),
}
# The image is heard beside the words, and the tower's activation in the image.
_GAINS = {"embed_tokens": 0.25, "mlp.fc1": 2.0, "mlp.fc2": 4.0, "position_embedding": 2.0}


def _write_janus(folder: Path) -> None:
    write_tokenizer_janus(folder, n_tokens=_N_TOKENS)


def _write_deepseek(folder: Path) -> None:
    write_tokenizer_deepseek_vl(folder, n_tokens=_N_TOKENS)


JANUS = Recipe(
    name="janus",
    config=_JANUS,
    preprocessor=_pixels("Janus"),
    write_tokenizer=_write_janus,
    model_class="JanusForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=_PROMPTS,
    pre="deepseek-llm",
    outtypes=("auto",),
    # Of what is left out.
    free_numbers=tuple(_CODES),
    gains=_GAINS,
    seed=20261128,
    mutations=_MUTATIONS,
)
DEEPSEEK_VL = Recipe(
    name="deepseek_vl",
    config=_DEEPSEEK,
    preprocessor=_pixels("DeepseekVL"),
    write_tokenizer=_write_deepseek,
    model_class="DeepseekVLForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=_PROMPTS,
    pre="deepseek-llm",
    refused="it has no converter of this class",
    gains=_GAINS,
    seed=20261128,
    mutations=_MUTATIONS,
)
