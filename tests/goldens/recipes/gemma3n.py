"""Gemma 3n: four streams, shared keys, a tower of convolutions, sound left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert.metadata import array, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import Mutation, mmproj, nothing, swap, text, values
from tests.goldens.qwen3_checkpoints import rewrite
from tests.goldens.recipe import Recipe
from tests.goldens.small_mobilenet import install
from tests.tokenizers.gemma3n import N_TEXT, N_TOWER, write_tokenizer_gemma3n

_N_EMBD, _N_LAYERS, _N_FF = 32, 22, 2048
_SLIDING, _FULL = "sliding_attention", "full_attention"


def _uir(width: int, start: int, mid: int, growth: float, stride: int = 1) -> dict[str, Any]:
    return {
        "act_layer": None,
        "block_type": "uir",
        "dw_kernel_size_end": 0,
        "dw_kernel_size_mid": mid,
        "dw_kernel_size_start": start,
        "exp_ratio": growth,
        "noskip": False,
        "out_chs": width,
        "se_ratio": 0.0,
        "stride": stride,
    }


def _er(width: int, stride: int) -> dict[str, Any]:
    return {
        "act_layer": None,
        "block_type": "er",
        "exp_kernel_size": 3,
        "exp_ratio": 4.0,
        "force_in_chs": 0,
        "noskip": False,
        "out_chs": width,
        "pw_kernel_size": 1,
        "se_ratio": 0.0,
        "stride": stride,
    }


def _mqa(width: int, n_heads: int, head: int, stride: int) -> dict[str, Any]:
    return {
        "act_layer": None,
        "block_type": "mqa",
        "dw_kernel_size": 3,
        "key_dim": head,
        "kv_stride": stride,
        "noskip": False,
        "num_heads": n_heads,
        "out_chs": width,
        "stride": 1,
        "value_dim": head,
    }


_BLOCKS = [
    [_er(16, 2), _er(16, 1)],
    [_uir(24, 3, 5, 6.0, 2), _uir(24, 5, 0, 4.0)],
    [_uir(32, 5, 5, 6.0, 2), _uir(32, 0, 0, 1.0), _mqa(32, 3, 16, 2), _uir(32, 0, 0, 2.0)],
    [_uir(48, 5, 5, 6.0, 2), _mqa(48, 2, 24, 1), _uir(48, 0, 0, 2.0)],
]
_KINDS = [_FULL if layer % 5 == 4 else _SLIDING for layer in range(20)] + [_SLIDING, _FULL]
_CONFIG = {
    "architectures": ["Gemma3nForConditionalGeneration"],
    "audio_config": {
        "conf_attention_chunk_size": 4,
        "conf_attention_context_left": 5,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 1,
        "hidden_size": 16,
        "input_feat_size": 16,
        "model_type": "gemma3n_audio",
        "sscp_conv_channel_size": [8, 4],
        "vocab_offset": N_TEXT + N_TOWER,
        "vocab_size": N_TOWER,
    },
    "audio_token_id": N_TEXT + N_TOWER + 1,
    "boa_token_id": N_TEXT - 1,
    "boi_token_id": N_TEXT - 2,
    "dtype": "bfloat16",
    "eoa_token_id": N_TEXT + N_TOWER,
    "eoi_token_id": N_TEXT,
    "eos_token_id": [1],
    "image_token_id": N_TEXT + 1,
    "model_type": "gemma3n",
    "text_config": {
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (_N_LAYERS - 10),
        "altup_active_idx": 0,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_num_inputs": 4,
        "attention_bias": False,
        "final_logit_softcapping": 30.0,
        "head_dim": 12,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": _N_EMBD,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": [_N_FF] * _N_LAYERS,
        "laurel_rank": 64,
        "layer_types": _KINDS,
        "max_position_embeddings": 2048,
        "model_type": "gemma3n_text",
        "num_attention_heads": 4,
        "num_hidden_layers": _N_LAYERS,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": _N_LAYERS - 20,
        "rms_norm_eps": 0.02,
        "rope_parameters": {
            _FULL: {"rope_theta": 100.0, "rope_type": "default"},
            _SLIDING: {"rope_theta": 50.0, "rope_type": "default"},
        },
        "sliding_window": 40,
        "tie_word_embeddings": True,
        "vocab_size": N_TEXT + 2 * N_TOWER,
        "vocab_size_per_layer_input": N_TEXT,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": _N_EMBD,
        "label_names": ["LABEL_0", "LABEL_1"],
        "model_args": {"block_args": _BLOCKS, "stem_size": 16},
        "model_type": "gemma3n_vision",
        "num_classes": 2,
        "rms_norm_eps": 1e-06,
        "vocab_offset": N_TEXT,
        "vocab_size": N_TOWER,
    },
    "vision_soft_tokens_per_image": 256,
}
_PREPROCESSOR = {
    "do_normalize": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Gemma3nProcessor",
    "resample": 2,
    "size": {"height": 512, "width": 512},
}
_PROMPTS = (
    ("text only", "What is the color? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What do you see in the image?", ("512x512-1",)),
    ("another image", "What do you see in the image?", ("512x512-2",)),
    ("two images", "Is the circle in one or in the other?", ("512x512-2", "512x512-1")),
)
_SHARED = {
    f"model.language_model.layers.{layer}.self_attn.{name}.weight": shape
    for layer in range(20, _N_LAYERS)
    for name, shape in (
        ("k_proj", (24, _N_EMBD)),
        ("v_proj", (24, _N_EMBD)),
        ("k_norm", (12,)),
    )
}


def _prepare() -> None:
    install(_N_EMBD)


def _without_sound(folder: Path) -> None:
    """Leave out the tower for sound: llama.cpp's converter has no name for one of its norms."""
    rewrite(
        folder,
        lambda weights: {
            name: values
            for name, values in weights.items()
            if not name.startswith(("model.audio_tower.", "model.embed_audio."))
        },
    )


Weights = NDArray[np.float32]


def _ones(weights: Weights) -> Weights:
    return np.ones_like(weights)


def _zeros(weights: Weights) -> Weights:
    return np.zeros_like(weights)


def _rolled(weights: Weights) -> Weights:
    """Exchange matrices of a stack, or halves of a vector."""
    return np.roll(weights, max(1, len(weights) // 2), axis=0)


def _layers_exchanged(table: Weights) -> Weights:
    return np.roll(table, 256, axis=1)


def _stages_exchanged(weights: Weights) -> Weights:
    return np.roll(weights, 32, axis=1)


def _rows_for_columns(kernels: Weights) -> Weights:
    return np.ascontiguousarray(kernels.swapaxes(2, 3))


def _streams_exchanged(coefficients: Weights) -> Weights:
    return coefficients.reshape(4, 4, 4).swapaxes(0, 1).reshape(16, 4)


_NORMS = (
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
    "output_norm",
    "per_layer_proj_norm",
    "altup_router_norm",
    "laurel_post_norm",
)
_MUTATIONS: dict[str, Mutation] = {
    **{f"{name} of ones": text(values(f"{name}.", _ones)) for name in _NORMS},
    "norms behind the layers' own embeddings of ones": text(values(".post_norm.", _ones)),
    "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
    "streams come from other matrices": text(values("altup_proj.", _rolled)),
    "streams go through other matrices": text(values("altup_unembd_proj.", _rolled)),
    "coefficients of predictions transposed": text(
        values("altup_predict_coef.", _streams_exchanged)
    ),
    "streams are not corrected apart": text(values("altup_correct_coef.", _zeros)),
    "corrected streams have no scale": text(values("altup_correct_scale.", _ones)),
    "layers have each other's embeddings": text(values("per_layer_token_embd.", _layers_exchanged)),
    "no residual of low rank": text(values("laurel_r.", _zeros)),
    "another epsilon": text(nothing, {"gemma3n.attention.layer_norm_rms_epsilon": f32(1e-6)}),
    "another rotary base": text(nothing, {"gemma3n.rope.freq_base": f32(1e6)}),
    "another local rotary base": text(nothing, {"gemma3n.rope.freq_base_swa": f32(1e6)}),
    "a window wider by one": text(nothing, {"gemma3n.attention.sliding_window": u32(41)}),
    "keys and values of the tower exchanged": mmproj(swap(".attn.key.", ".attn.value.")),
    "scales of blocks of ones": mmproj(values("layer_scale.gamma", _ones)),
    "norms of blocks of ones": mmproj(values(".bn.weight", _ones)),
    "norms of edge residuals of ones": mmproj(values(".bn1.weight", _ones)),
    "norms before attention of ones": mmproj(values(".2.norm.weight", _ones)),
    "no bias in the stem": mmproj(values("v.conv_stem.conv.bias", _zeros)),
    "rows for columns in the stem": mmproj(values("v.conv_stem.conv.weight", _rows_for_columns)),
    "rows for columns behind": mmproj(values(".dw_start.conv.weight", _rows_for_columns)),
    "joined stages exchanged": mmproj(values("msfa.ffn.pw_exp.conv.weight", _stages_exchanged)),
    "norm of what is joined of ones": mmproj(values("mm.soft_emb_norm.", _ones)),
    "another end of an image": mmproj(values("v.token_embd.img_end", _rolled)),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
}
RECIPE = Recipe(
    name="gemma3n",
    config=_CONFIG,
    preprocessor=_PREPROCESSOR,
    write_tokenizer=write_tokenizer_gemma3n,
    model_class="Gemma3nForConditionalGeneration",
    image_token=N_TEXT + 1,
    prompts=_PROMPTS,
    prepare=_prepare,
    adapt=_without_sound,
    extra=_SHARED,
    free_numbers=(
        "audio_config",
        "audio_token_id",
        "boa_token_id",
        "boi_token_id",
        "eoa_token_id",
        "num_classes",
        "sliding_window",
    ),
    mutations=_MUTATIONS,
    outtypes=("f16",),
    mended={
        "v.token_embd.img_end": "llama.cpp has nothing for the token behind an image",
        **{
            f"v.blk.{stage}.{number}.layer_scale.gamma": "llama.cpp's own has one dimension, which"
            " ends the process"
            for stage, blocks in enumerate(_BLOCKS)
            for number, block in enumerate(blocks)
            if block["block_type"] != "er"
        },
    },
    mended_keys=dict.fromkeys(
        (
            "clip.has_audio_encoder",
            *(
                f"clip.audio.{key}"
                for key in (
                    "projection_dim",
                    "embedding_length",
                    "feed_forward_length",
                    "block_count",
                    "attention.head_count",
                    "projector_type",
                    "num_mel_bins",
                    "attention.layer_norm_epsilon",
                )
            ),
        ),
        "sound is left out",
    ),
    gains={
        "embed_tokens.weight": 0.15,
        # What is projected must be heard beside it.
        "embed_tokens_per_layer": 0.15,
        "q_norm": 0.3,
        "k_norm": 0.3,
        "prediction_coefs": 0.3,
        "correction_coefs": 0.3,
    },
    seed=20261130,
)
