"""The configurations of Qwen2-VL and Qwen2.5-VL as published, written out in the form they have.

From the repositories of Qwen on the Hugging Face Hub; left out is what only training or generation
reads. All are of transformers 4: the text model's keys stand at the root.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.goldens.recipe import Config

_TEXT = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "torch_dtype": "bfloat16",
}
_VISION = {
    "depth": 32,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}


def _config(name: str, numbers: str, *, vision: Mapping[str, object], **more: object) -> Config:
    """Return a configuration; `numbers` are width, inner width, layers, heads, KV heads, tokens."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl"}[name],
        **_TEXT,
        **dict(zip(keys, map(int, numbers.split()), strict=True)),
        **more,
        "vision_config": {**_VISION, **vision},
    }


def _qwen2(numbers: str, *, tied: bool = False, max_window_layers: int) -> Config:
    return _config(
        "Qwen2VL",
        numbers,
        vision={"embed_dim": 1280, "hidden_size": int(numbers.split()[0]), "mlp_ratio": 4},
        max_position_embeddings=32768,
        max_window_layers=max_window_layers,
        tie_word_embeddings=tied,
    )


def _qwen2_5(numbers: str, *, inner: int, tied: bool = False, max_window_layers: int) -> Config:
    return _config(
        "Qwen2_5_VL",
        numbers,
        vision={
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": inner,
            "out_hidden_size": int(numbers.split()[0]),
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "tokens_per_second": 2,
        },
        max_position_embeddings=128000,
        max_window_layers=max_window_layers,
        tie_word_embeddings=tied,
    )


PUBLISHED: Mapping[str, Config] = {
    "Qwen2-VL-2B": _qwen2("1536 8960 28 12 2 151936", tied=True, max_window_layers=28),
    "Qwen2-VL-7B": _qwen2("3584 18944 28 28 4 152064", max_window_layers=28),
    "Qwen2-VL-72B": _qwen2("8192 29568 80 64 8 152064", max_window_layers=80),
    "Qwen2.5-VL-3B": _qwen2_5(
        "2048 11008 36 16 2 151936", inner=3420, tied=True, max_window_layers=70
    ),
    "Qwen2.5-VL-7B": _qwen2_5("3584 18944 28 28 4 152064", inner=3420, max_window_layers=28),
    "Qwen2.5-VL-32B": _qwen2_5("5120 27648 64 40 8 152064", inner=3456, max_window_layers=64),
    "Qwen2.5-VL-72B": _qwen2_5("8192 29568 80 64 8 152064", inner=3456, max_window_layers=80),
}
# What the shards' index files say, halved: a slip in the numbers above would show.
N_PARAMETERS: Mapping[str, int] = {
    "Qwen2-VL-2B": 2_208_985_600,
    "Qwen2-VL-7B": 8_291_375_616,
    "Qwen2-VL-72B": 73_405_560_320,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
}
