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


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a checkpoint as published, by name, and its shape.

    Args:
        config: config.json, in its older form or its newer.
    """
    text: Config = config.get("text_config", config)
    width, inner = text["hidden_size"], text["intermediate_size"]
    head = width // text["num_attention_heads"]
    n_key = head * text["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (text["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], width)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for letter, n_out in (("q", width), ("k", n_key), ("v", n_key)):
            shapes[f"{prefix}self_attn.{letter}_proj.weight"] = (n_out, width)
            shapes[f"{prefix}self_attn.{letter}_proj.bias"] = (n_out,)
        shapes |= {
            f"{prefix}input_layernorm.weight": (width,),
            f"{prefix}post_attention_layernorm.weight": (width,),
            f"{prefix}self_attn.o_proj.weight": (width, width),
            f"{prefix}mlp.gate_proj.weight": (inner, width),
            f"{prefix}mlp.up_proj.weight": (inner, width),
            f"{prefix}mlp.down_proj.weight": (width, inner),
        }
    return shapes | _vision_shapes(config["vision_config"])


def _vision_shapes(vision: Config) -> dict[str, tuple[int, ...]]:
    newer = "embed_dim" not in vision
    width = vision["hidden_size" if newer else "embed_dim"]
    n_out = vision["out_hidden_size" if newer else "hidden_size"]
    inner = vision["intermediate_size"] if newer else width * vision["mlp_ratio"]
    patch = (vision["patch_size"], vision["patch_size"])
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (width, 3, 2, *patch)}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"visual.{name}.weight"] = shape
        if bias:
            shapes[f"visual.{name}.bias"] = shape[:1]

    mlp = ("gate_proj", "up_proj", "down_proj") if newer else ("fc1", "fc2")
    for block in range(vision["depth"]):
        prefix = f"blocks.{block}."
        add(f"{prefix}norm1", width, bias=not newer)
        add(f"{prefix}norm2", width, bias=not newer)
        add(f"{prefix}attn.qkv", 3 * width, width)
        add(f"{prefix}attn.proj", width, width)
        for name in mlp[:-1]:
            add(f"{prefix}mlp.{name}", inner, width)
        add(f"{prefix}mlp.{mlp[-1]}", width, inner)
    add("merger.ln_q", width, bias=not newer)
    add("merger.mlp.0", 4 * width, 4 * width)
    add("merger.mlp.2", n_out, 4 * width)
    return shapes
