"""Configurations of GLM-4.1V's and GLM-OCR's classes as transformers writes them, and mutations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.goldens.recipe import Config
from tests.tokenizers.glm import GLM_LAST, write_tokenizer_glm

N_TOKENS = 300
PATCH = 8
# The template writes these tokens by their text; nobody reads their ids.
TOKEN_IDS = ("image_start_token_id", "image_end_token_id")


def write_glm_tokenizer(folder: Path) -> None:
    """Write the tokenizer that the goldens' token ids are of."""
    write_tokenizer_glm(folder, n_tokens=N_TOKENS)


def token_id(name: str) -> int:
    """Return the id of a special token."""
    return N_TOKENS - len(GLM_LAST) + GLM_LAST.index(name)


def outer_config(class_name: str, model_type: str, *, text: Config, vision: Config) -> Config:
    """Return config.json as transformers 5 writes it."""
    return {
        "architectures": [class_name],
        "dtype": "bfloat16",
        "image_end_token_id": token_id("<|end_of_image|>"),
        "image_start_token_id": token_id("<|begin_of_image|>"),
        "image_token_id": token_id("<|image|>"),
        "model_type": model_type,
        "text_config": {
            "dtype": "bfloat16",
            "eos_token_id": [token_id("<|endoftext|>"), token_id("<|user|>")],
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "pad_token_id": token_id("<|endoftext|>"),
            "rms_norm_eps": 1e-05,
            "vocab_size": N_TOKENS + 20,
            **text,
        },
        "tie_word_embeddings": False,
        "video_token_id": token_id("<|video|>"),
        "vision_config": {
            "hidden_act": "silu",
            "in_channels": 3,
            "patch_size": PATCH,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }


def preprocessor() -> Config:
    """Return preprocessor_config.json; the bounds count the two frames of a still image."""
    return {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Glm46VImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": 2,
        "patch_size": PATCH,
        "size": {"shortest_edge": 4096, "longest_edge": 1048576},
        "temporal_patch_size": 2,
    }


def pairs_apart(
    n_rotated: int, head_dim: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return what undoes the order of rotary rows: pairs stand side by side again."""
    half = n_rotated // 2
    order = np.arange(n_rotated).reshape(2, half).T.reshape(-1)
    head = np.concatenate([order, np.arange(n_rotated, head_dim)])

    def change(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        heads = rows.reshape(-1, head_dim, *rows.shape[1:])
        return np.ascontiguousarray(heads[:, head]).reshape(rows.shape)

    return change
