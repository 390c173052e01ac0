"""LFM2-VL: two convolutions and attention between them, tied, a norm before the projector.

Patches are 16 pixels a side because llama.cpp's converter knows no others, and an image is 64
visual tokens at least. The second golden is as LFM2.5-VL: no such norm, and the width as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32
from numpy.typing import NDArray

from tests.convert.mutations import both, instead, mmproj, nothing, swap, text, values, without
from tests.convert.tricks import rename_tensors
from tests.goldens.recipe import PROMPTS, Config, Recipe
from tests.synthetic import write_json
from tests.tokenizers.lfm2 import LFM2_FIRST, write_tokenizer_lfm2

_N_TOKENS = 300
_N_EMBD, _PATCH, _N_VISION = 64, 16, 48
_IMAGE_TOKEN = LFM2_FIRST.index("<image>")


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_lfm2(folder, n_tokens=_N_TOKENS)


_CONFIG: Config = {
    "architectures": ["Lfm2VlForConditionalGeneration"],
    "downsample_factor": 2,
    "dtype": "bfloat16",
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "lfm2_vl",
    "projector_bias": True,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 80,
    "projector_use_layernorm": True,
    "text_config": {
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.3,
        "block_multiple_of": 32,
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "eos_token_id": 4,
        "hidden_size": _N_EMBD,
        # Two thirds of it, 1.3 times as much, and rounded up: 192; of 224 it is 224.
        "intermediate_size": 223,
        "layer_types": ["conv", "full_attention", "conv"],
        "max_position_embeddings": 2048,
        "model_type": "lfm2",
        "norm_eps": 0.02,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "vocab_size": 320,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "hidden_size": _N_VISION,
        "intermediate_size": 80,
        "layer_norm_eps": 0.05,
        "model_type": "siglip2_vision_model",
        "num_attention_heads": 6,
        # Of two layers llama.cpp's converter would not know `linear_2`.
        "num_hidden_layers": 3,
        "num_patches": 256,
        "patch_size": _PATCH,
        "vision_use_head": False,
    },
}


def _as_transformers_4(folder: Path) -> None:
    """Write config.json and names as they were published: an inner level, flat rotary settings."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    section = config["text_config"]
    section |= {"architectures": ["Lfm2ForCausalLM"]}
    section |= section.pop("rope_parameters")
    section.pop("rope_type")
    write_json(folder / "config.json", config)
    rename_tensors(folder, _old)


def _old(name: str) -> str:
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


def _channels_last(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo the order of a patch's pixels."""
    return kernel.transpose(0, 2, 3, 1).reshape(kernel.shape)


def _columns_first(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    return kernel.swapaxes(2, 3)


def _transposed(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table.reshape(16, 16, -1).swapaxes(0, 1).reshape(table.shape)


def _merged_otherwise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _rolled(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Exchange the three parts of what a convolution's matrix gives."""
    return np.roll(rows, _N_EMBD, axis=0)


def _paired(n_head: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def function(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        half = rows.shape[0] // n_head // 2
        return rows.reshape(n_head, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)

    return function


_TEXT_MUTATIONS = {
    "kernels backwards": text(values("shortconv.conv.weight", lambda rows: rows[:, ::-1])),
    "parts of the convolution exchanged": text(values("shortconv.in_proj", _rolled)),
    "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
    "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
    "another norm behind the layers": text(
        instead("token_embd_norm.weight", "blk.0.attn_norm.weight")
    ),
    "another epsilon": text(nothing, {"lfm2.attention.layer_norm_rms_epsilon": f32(1e-5)}),
}
RECIPE = Recipe(
    name="lfm2_vl",
    config=_CONFIG,
    preprocessor={
        "do_image_splitting": True,
        "downsample_factor": 2,
        "encoder_patch_size": _PATCH,
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "Lfm2VlImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "max_image_tokens": 256,
        "min_image_tokens": 64,
        "resample": 2,
        "use_thumbnail": True,
    },
    write_tokenizer=_write_tokenizer,
    model_class="Lfm2VlForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=(
        *PROMPTS[:1],
        # 12 x 22 and 18 x 16 patches, from a table of 16 x 16.
        ("one image", "What is in the image?", ("192x352-1",)),
        ("another image", "What is in the image?", ("192x352-2",)),
        ("two images", "Is the circle in one or in the other?", ("192x352-2", "288x256-3")),
    ),
    # llama.cpp's converter calls what it does "lfm2"; its runtime does the same under this name.
    pre="llama-bpe",
    adapt=_as_transformers_4,
    outtypes=("auto", "f16"),
    # The image and what the tower makes of it are heard in the answer.
    gains={
        "embed_tokens": 0.2,
        "self_attn.out_proj": 3.0,
        "linear_2.weight": 4.0,
        "k_proj.weight": 2.0,
        "patch_embedding.weight": 0.4,
        "mlp.fc1": 1.0,
        "mlp.fc2": 10.0,
    },
    mutations={
        **_TEXT_MUTATIONS,
        "head norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
        "rotary rows side by side": text(
            both(values("attn_q.weight", _paired(4)), values("attn_k.weight", _paired(2)))
        ),
        "another rotary base": text(nothing, {"lfm2.rope.freq_base": f32(110.0)}),
        "pixels normalized as usual": mmproj(
            nothing,
            {
                "clip.vision.image_mean": array("FLOAT32", [0.5] * 3),
                "clip.vision.image_std": array("FLOAT32", [0.5] * 3),
            },
        ),
        "channels of a patch last": mmproj(values("v.patch_embd.weight", _channels_last)),
        "columns of a patch first": mmproj(values("v.patch_embd.weight", _columns_first)),
        "positions column by column": mmproj(values("v.position_embd.weight", _transposed)),
        "no bias of the patch kernel": mmproj(without("v.patch_embd.bias")),
        "vision norms exchanged": mmproj(swap(".ln1.", ".ln2.")),
        "a block's norm behind the last block": mmproj(swap("v.blk.2.ln1.", "v.post_ln.")),
        "vision query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "another vision epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
        ),
        "the CLIP towers' activation": mmproj(nothing, {"clip.use_gelu": boolean(False)}),
        "no norm before the projector": mmproj(without("mm.input_norm.weight")),
        "patches merged column by column": mmproj(values("mm.1.weight", _merged_otherwise)),
    },
)
