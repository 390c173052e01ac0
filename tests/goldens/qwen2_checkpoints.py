"""Configurations of Qwen2-VL and Qwen2.5-VL as transformers writes them, and their older forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.goldens.recipe import Config
from tests.synthetic import tiny_config, write_tokenizer

N_TOKENS = 300
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def qwen2_config(
    name: str, *, text: Mapping[str, Any], vision: Mapping[str, Any], tied: bool
) -> Config:
    """Return config.json as transformers 5 writes it.

    Args:
        name: "Qwen2VL" or "Qwen2_5_VL".
        text: `text_config`, without what every golden of these families has.
        vision: `vision_config`, the same.
        tied: whether the output matrix is the token embedding.
    """
    model_type = {"Qwen2VL": "qwen2_vl", "Qwen2_5_VL": "qwen2_5_vl"}[name]
    ids = tiny_config(n_tokens=N_TOKENS)
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "dtype": "bfloat16",
        "model_type": model_type,
        "text_config": {
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "model_type": f"{model_type}_text",
            "num_hidden_layers": 2,
            "rms_norm_eps": 1e-06,
            "use_sliding_window": False,
            "vocab_size": N_TOKENS + 20,
            **text,
        },
        "tie_word_embeddings": tied,
        "vision_config": {
            "in_channels": 3,
            "model_type": f"{model_type}_vision",
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        **{key: ids[key] for key in _IDS},
    }


def flat(config: Config, *, rope_scaling: Config) -> Config:
    """Return config.json as transformers 4 published it: the text model's keys at the root."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    vision = dict(config["vision_config"])
    # Its name before the class knew it; the value was right.
    vision["in_chans"] = vision.pop("in_channels")
    del text["model_type"], vision["model_type"]
    outer = {key: value for key, value in config.items() if key not in ("text_config", "dtype")}
    return {
        **outer,
        **text,
        "torch_dtype": config["dtype"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": rope_scaling,
        "vision_config": vision,
    }


def write_qwen_tokenizer(folder: Path) -> None:
    """Write the tokenizer that the configurations' token ids are of."""
    write_tokenizer(folder, n_tokens=N_TOKENS)
