"""PaddleOCR-VL: heads of their own size, a table of positions larger than an image's columns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32

from tests.convert.mutations import mmproj, nothing, swap, text, values
from tests.goldens.recipe import Config, Recipe
from tests.synthetic import write_json
from tests.tokenizers.ernie import ERNIE_LAST, write_tokenizer_ernie

_N_TOKENS = 300
PATCH = 8


def _token_id(name: str) -> int:
    return _N_TOKENS - len(ERNIE_LAST) + ERNIE_LAST.index(name)


_CONFIG: Config = {
    "architectures": ["PaddleOCRVLForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_id": _token_id("<|IMAGE_PLACEHOLDER|>"),
    "model_type": "paddleocr_vl",
    "text_config": {
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 160,
        "max_position_embeddings": 2048,
        "model_type": "paddleocr_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "mrope_section": [4, 6, 6],
            "rope_theta": 100.0,
            "rope_type": "default",
        },
        "tie_word_embeddings": False,
        "use_bias": False,
        "vocab_size": _N_TOKENS + 20,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "image_size": 5 * PATCH,
        "intermediate_size": 80,
        "layer_norm_eps": 0.02,
        "model_type": "paddleocr_vl_vision",
        "num_attention_heads": 3,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
    },
    "video_token_id": _N_TOKENS + 1,
    "vision_end_token_id": _token_id("<|IMAGE_END|>"),
    "vision_start_token_id": _token_id("<|IMAGE_START|>"),
}
_TOWER = "visual.vision_model."


def preprocessor() -> Config:
    """Return preprocessor_config.json, with the names that published ones have."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.4, 0.6],
        "image_processor_type": "PaddleOCRVLImageProcessor",
        "image_std": [0.5, 0.6, 0.4],
        "max_pixels": 262144,
        "merge_size": 2,
        "min_pixels": 1024,
        "patch_size": PATCH,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "temporal_patch_size": 1,
    }


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_ernie(folder, n_tokens=_N_TOKENS)


def _as_llama_cpp_takes_it(folder: Path) -> None:
    """Name the tower's class, which the converter looks for."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vision_config"]["architectures"] = ["PaddleOCRVisionModel"]
    write_json(folder / "config.json", config)


def _text(key: str) -> str:
    return f"paddleocr.{key}"


RECIPE = Recipe(
    name="paddleocr_vl",
    config=_CONFIG,
    preprocessor=preprocessor(),
    write_tokenizer=_write_tokenizer,
    model_class="PaddleOCRVLForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    adapt=_as_llama_cpp_takes_it,
    # Of published checkpoints.
    extra={f"{_TOWER}embeddings.packing_position_embedding.weight": (16, 48)},
    mended_keys={
        "clip.vision.attention.layer_norm_epsilon": "llama.cpp's converter always writes 1e-6, the"
        " value of published models",
    },
    # Patches of an image are counted, not its pixels.
    free_numbers=(
        "num_attention_heads",
        "image_size",
        "vision_start_token_id",
        "vision_end_token_id",
    ),
    gains={"embed_tokens": 0.2},
    mutations={
        "no bias of the patches": mmproj(values("v.patch_embd.bias", np.zeros_like)),
        "no positions": mmproj(values("v.position_embd", np.zeros_like)),
        "positions column by column": mmproj(
            values(
                "v.position_embd",
                lambda rows: np.ascontiguousarray(
                    rows.reshape(5, 5, -1).swapaxes(0, 1).reshape(rows.shape)
                ),
            )
        ),
        "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
        "norm of the last block behind all": mmproj(swap("v.blk.2.ln1.", "v.post_ln.")),
        "merger's norm behind all": mmproj(swap("mm.input_norm.", "v.post_ln.")),
        "query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "key and value exchanged": mmproj(swap("attn_k.", "attn_v.")),
        "no bias of queries": mmproj(values("attn_q.bias", np.zeros_like)),
        "no bias of the merger": mmproj(values("mm.1.bias", np.zeros_like)),
        "vision norms with another epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-3)}
        ),
        "silu for gelu": mmproj(nothing, {"clip.use_gelu": None, "clip.use_silu": boolean(True)}),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "rotary sections in another order": text(
            nothing, {_text("rope.dimension_sections"): array("INT32", [6, 4, 6, 0])}
        ),
        "another rotary base": text(nothing, {_text("rope.freq_base"): f32(110.0)}),
        "another epsilon": text(nothing, {_text("attention.layer_norm_rms_epsilon"): f32(1e-3)}),
    },
)
