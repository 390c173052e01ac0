"""Random tiny Qwen3-VL checkpoints, written with numpy alone.

    write_checkpoint(folder)                              # 2 text layers, 3 vision layers, BF16
    write_checkpoint(folder, text={"hidden_size": 960}, seed=3, dtype="F32", shards=3, tied=True)

Weights come from the raw stream of PCG64, which NumPy promises never to change (NEP 19), turned
into nearly normal numbers by integer sums: the same seed gives the same bytes on every machine.
Norms and biases are away from 1 and 0, heads x head_dim differs from hidden, the vocabulary is
padded, and deepstack layers stand out of order, so that a wrong transform shows.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tests.synthetic_tokenizer import (
    SPECIAL_TOKENS,
    USER_TOKENS,
    Config,
    tokenizer_json,
    write_json,
    write_tokenizer,
)

__all__ = [
    "SPECIAL_TOKENS",
    "USER_TOKENS",
    "Config",
    "draw",
    "encode",
    "generation_config",
    "preprocessor_config",
    "tensor_shapes",
    "tiny_config",
    "tokenizer_json",
    "write_checkpoint",
    "write_json",
    "write_safetensors",
    "write_sparse_shapes",
    "write_sparse_weights",
    "write_tokenizer",
    "write_weights",
]
Shape = tuple[int, ...]
# Rows that are looked up, not multiplied.
_TABLES = ("pos_embed", "position_embedding", "embed_tokens")


def tiny_config(
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    tied: bool = False,
    n_tokens: int = 300,
) -> Config:
    """Return a small Qwen3-VL config.json; `text` and `vision` replace keys of its sections."""
    text_config: Config = {
        "attention_bias": False,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
            "rope_theta": 10000.0,
            "rope_type": "default",
        },
        "vocab_size": n_tokens + 20,
        **(text or {}),
    }
    vision_config: Config = {
        "deepstack_visual_indexes": [2, 0],
        "depth": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "intermediate_size": 48,
        "model_type": "qwen3_vl_vision",
        "num_heads": 2,
        "num_position_embeddings": 36,
        "out_hidden_size": text_config["hidden_size"],
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **(vision or {}),
    }
    first = n_tokens - len(SPECIAL_TOKENS) - len(USER_TOKENS)
    ids = {token: first + number for number, token in enumerate(SPECIAL_TOKENS)}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": text_config,
        "tie_word_embeddings": tied,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision_config,
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def tensor_shapes(config: Config) -> dict[str, Shape]:
    """Return every tensor that transformers saves for a config, by name, and its shape."""
    text, vision = cast(Config, config["text_config"]), cast(Config, config["vision_config"])
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    n_query = text["num_attention_heads"] * text["head_dim"]
    n_key = text["num_key_value_heads"] * text["head_dim"]
    shapes: dict[str, Shape] = {
        "model.language_model.embed_tokens.weight": (text["vocab_size"], hidden),
        "model.language_model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], hidden)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"model.language_model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_norm.weight": (text["head_dim"],),
            f"{prefix}self_attn.k_norm.weight": (text["head_dim"],),
            f"{prefix}self_attn.q_proj.weight": (n_query, hidden),
            f"{prefix}self_attn.k_proj.weight": (n_key, hidden),
            f"{prefix}self_attn.v_proj.weight": (n_key, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, n_query),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }
    return shapes | _vision_shapes(vision)


def _vision_shapes(vision: Config) -> dict[str, Shape]:
    hidden, inner, out = (
        vision[key] for key in ("hidden_size", "intermediate_size", "out_hidden_size")
    )
    patch = (vision["patch_size"], vision["patch_size"])
    shapes: dict[str, Shape] = {
        "model.visual.patch_embed.proj.weight": (hidden, 3, 2, *patch),
        "model.visual.patch_embed.proj.bias": (hidden,),
        "model.visual.pos_embed.weight": (vision["num_position_embeddings"], hidden),
    }

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    for block in range(vision["depth"]):
        prefix = f"model.visual.blocks.{block}."
        layer(f"{prefix}norm1", hidden)
        layer(f"{prefix}norm2", hidden)
        layer(f"{prefix}attn.qkv", 3 * hidden, hidden)
        layer(f"{prefix}attn.proj", hidden, hidden)
        layer(f"{prefix}mlp.linear_fc1", inner, hidden)
        layer(f"{prefix}mlp.linear_fc2", hidden, inner)
    mergers = [("model.visual.merger.", hidden)]
    for number in range(len(vision["deepstack_visual_indexes"])):
        mergers.append((f"model.visual.deepstack_merger_list.{number}.", 4 * hidden))
    for prefix, n_norm in mergers:
        layer(f"{prefix}norm", n_norm)
        layer(f"{prefix}linear_fc1", 4 * hidden, 4 * hidden)
        layer(f"{prefix}linear_fc2", out, 4 * hidden)
    return shapes


# Gemma 4's factors and bounds, which are no weights of theirs.
_AROUND_ONE = ("layer_scalar", "std_scale", "router.scale", "per_expert_scale", "put_max")
_BELOW_ZERO = ("put_min",)


def draw(
    name: str, shape: Shape, *, seed: int, gains: Mapping[str, float] | None = None
) -> NDArray[np.float32]:
    """Return the values of one tensor; they depend on nothing but what is given here.

    Args:
        name: in the checkpoint.
        shape: of it.
        seed: of the checkpoint.
        gains: factors by parts of names.
    """
    n_values = math.prod(shape)
    stream = np.random.PCG64([seed, zlib.crc32(name.encode())])
    raw = stream.random_raw(n_values).view("<u2").reshape(n_values, 4)
    # The sum of four uniform numbers: mean 2 x 65535, deviation 65536 / sqrt(3).
    normal = (raw.sum(axis=1, dtype=np.int64) - 2 * 65535).astype(np.float64) / 37837.0
    if name.endswith(".weight") and len(shape) == 1:
        values = 1.0 + 0.3 * normal
        if "q_norm" in name or "k_norm" in name:
            # Sharper attention: positions are heard in the answer.
            values *= 1.5
    elif name.endswith(_AROUND_ONE):
        values = 1.0 + 0.3 * normal
    elif name.endswith(_BELOW_ZERO):
        values = -1.0 - 0.3 * normal
    elif name.endswith(".bias"):
        values = 0.2 * normal
    elif len(shape) == 2 and any(part in name for part in _TABLES):
        values = normal
    else:
        fan_in = math.prod(shape[1:])
        values = normal * _gain(name) / math.sqrt(fan_in)
    for part, factor in (gains or {}).items():
        if part in name:
            values *= factor
    return values.astype(np.float32).reshape(shape)


def _gain(name: str) -> float:
    """Return how much a matrix amplifies: the image must be heard in the answer."""
    if name == "lm_head.weight":
        return 2.0
    if "linear_fc2" in name and "merger" in name:
        return 4.0
    return 1.0


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return values as "F32", "F16" or "BF16" bytes, rounded to nearest even."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16).astype("<u2").tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Shape, bytes]]) -> None:
    """Write tensors given as (dtype, shape, bytes) by name."""
    header: Config = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
    with path.open("wb") as file:
        text = json.dumps(header).encode()
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, raw in tensors.values():
            file.write(raw)


def write_weights(folder: Path, config: Config, *, seed: int, dtype: str, shards: int) -> None:
    """Draw and write all tensors, into one file or into shards with an index."""
    shapes = tensor_shapes(config)
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        if shards == 1:
            file = "model.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        weight_map |= {name: file for name in part}
        write_safetensors(
            folder / file,
            {
                name: (dtype, shapes[name], encode(draw(name, shapes[name], seed=seed), dtype))
                for name in part
            },
        )
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_sparse_weights(folder: Path, config: Config) -> int:
    """Write all tensors as zeros, BF16, in one file that takes no room; return its size."""
    return write_sparse_shapes(folder, tensor_shapes(config))


def write_sparse_shapes(folder: Path, shapes: Mapping[str, Shape]) -> int:
    """Do the same with tensors given by name and shape."""
    header: Config = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset


def preprocessor_config(patch: int) -> Config:
    """Return preprocessor_config.json of a Qwen-VL model with patches of `patch` pixels."""
    return {
        "image_mean": [0.5, 0.45, 0.4],
        "image_std": [0.5, 0.25, 0.3],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "merge_size": 2,
        "patch_size": patch,
        "temporal_patch_size": 2,
        "processor_class": "Qwen3VLProcessor",
        # The runtime's bounds: 8 to 4096 visual tokens of 2 x 2 patches.
        "size": {
            "shortest_edge": 8 * (2 * patch) ** 2,
            "longest_edge": 4096 * (2 * patch) ** 2,
        },
    }


def generation_config() -> Config:
    """Return generation_config.json."""
    return {
        "do_sample": True,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }


def write_checkpoint(
    folder: Path,
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    tied: bool = False,
    n_tokens: int = 300,
    seed: int = 1,
    dtype: str = "BF16",
    shards: int = 1,
) -> Config:
    """Write a whole checkpoint into `folder` (created) and return its config.

    Args:
        folder: where.
        text: keys of text_config to replace; `vocab_size` is n_tokens + 20 unless given.
        vision: keys of vision_config to replace.
        tied: no lm_head.
        n_tokens: size of the vocabulary, 264 at least.
        seed: of the weights.
        dtype: of all tensors: "BF16", "F16" or "F32".
        shards: number of safetensors files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(text=text, vision=vision, tied=tied, n_tokens=n_tokens)
    write_json(folder / "config.json", config)
    write_tokenizer(folder, n_tokens=n_tokens)
    patch = config["vision_config"]["patch_size"]
    write_json(folder / "preprocessor_config.json", preprocessor_config(patch))
    write_json(folder / "generation_config.json", generation_config())
    write_weights(folder, config, seed=seed, dtype=dtype, shards=shards)
    return config
