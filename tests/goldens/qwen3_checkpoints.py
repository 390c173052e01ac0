"""Configurations of Qwen3-VL's and Qwen3.5's classes, and the forms their checkpoints come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.convert.tricks import split_safetensors
from tests.goldens.recipe import Config
from tests.synthetic import tiny_config, write_safetensors
from tests.tokenizers.byte_level import QWEN35_LAST, write_tokenizer_qwen35

N_TOKENS = 300
# (dtype, shape, bytes) by name.
Weights = dict[str, tuple[str, tuple[int, ...], bytes]]
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_EXPERT = re.compile(r"(.*mlp\.experts\.)(\d+)\.(gate|up|down)_proj\.weight")


def moe_config(*, text: Mapping[str, Any], vision: Mapping[str, Any]) -> Config:
    """Return config.json of Qwen3-VL's MoE class as transformers 5 writes it."""
    config = tiny_config(text=text, vision=vision, n_tokens=N_TOKENS)
    config["architectures"] = ["Qwen3VLMoeForConditionalGeneration"]
    config["model_type"] = "qwen3_vl_moe"
    config["text_config"] |= {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
    }
    config["vision_config"]["model_type"] = "qwen3_vl_moe_vision"
    return config


def hybrid_config(
    *, text: Mapping[str, Any], vision: Mapping[str, Any], moe: bool = False, tied: bool = False
) -> Config:
    """Return config.json of a Qwen3.5 as transformers 5 writes it."""
    name = "qwen3_5_moe" if moe else "qwen3_5"
    config = tiny_config(n_tokens=N_TOKENS, tied=tied)
    text_config: Config = {
        "attention_bias": False,
        "head_dim": 32,
        "hidden_act": "silu",
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "max_position_embeddings": 2048,
        "model_type": f"{name}_text",
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": tied,
        "vocab_size": N_TOKENS + 20,
        **text,
    }
    layers = range(text_config["num_hidden_layers"])
    kinds = ["full_attention" if layer % 4 == 3 else "linear_attention" for layer in layers]
    vision_config = {
        **config["vision_config"],
        "model_type": f"{name}_vision",
        "out_hidden_size": text_config["hidden_size"],
        **vision,
    }
    del vision_config["deepstack_visual_indexes"]
    first = N_TOKENS - len(QWEN35_LAST)
    ids = {token: first + number for number, token in enumerate(QWEN35_LAST)}
    return {
        **config,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "architectures": [f"Qwen3_5{'Moe' if moe else ''}ForConditionalGeneration"],
        "model_type": name,
        "text_config": {"layer_types": kinds, **text_config},
        "vision_config": vision_config,
    }


def write_hybrid_tokenizer(folder: Path) -> None:
    """Write the tokenizer that a hybrid's token ids are of."""
    write_tokenizer_qwen35(folder, n_tokens=N_TOKENS)


def mtp_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one MTP layer by name, as published checkpoints have them."""
    text = config["text_config"]
    n_embd = text["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (n_embd, 2 * n_embd),
        "norm.weight": (n_embd,),
        "pre_fc_norm_embedding.weight": (n_embd,),
        "pre_fc_norm_hidden.weight": (n_embd,),
        "layers.0.input_layernorm.weight": (n_embd,),
        "layers.0.post_attention_layernorm.weight": (n_embd,),
        **{
            f"layers.0.self_attn.{name}.weight": shape
            for name, shape in _attention_shapes(text).items()
        },
        **{f"layers.0.mlp.{name}": shape for name, shape in _mlp_shapes(text).items()},
    }
    return {f"mtp.{name}": shape for name, shape in shapes.items()}


def _attention_shapes(text: Config) -> dict[str, tuple[int, ...]]:
    n_embd, head_dim = text["hidden_size"], text["head_dim"]
    n_query, n_key = (text[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    return {
        "q_proj": (2 * n_query, n_embd),
        "k_proj": (n_key, n_embd),
        "v_proj": (n_key, n_embd),
        "o_proj": (n_embd, n_query),
        "q_norm": (head_dim,),
        "k_norm": (head_dim,),
    }


def _mlp_shapes(text: Config) -> dict[str, tuple[int, ...]]:
    n_embd = text["hidden_size"]
    if "num_experts" not in text:
        return _gated("", n_embd, text["intermediate_size"])
    n, n_ff = text["num_experts"], text["moe_intermediate_size"]
    return {
        "gate.weight": (n, n_embd),
        "experts.gate_up_proj": (n, 2 * n_ff, n_embd),
        "experts.down_proj": (n, n_embd, n_ff),
        "shared_expert_gate.weight": (1, n_embd),
        **_gated("shared_expert.", n_embd, text["shared_expert_intermediate_size"]),
    }


def _gated(prefix: str, n_embd: int, n_ff: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (n_ff, n_embd),
        f"{prefix}up_proj.weight": (n_ff, n_embd),
        f"{prefix}down_proj.weight": (n_embd, n_ff),
    }


def transpose_experts(folder: Path) -> None:
    """Store each expert's matrix transposed, as Qwen3-VL-30B-A3B is published."""

    def change(weights: Weights) -> Weights:
        changed = dict(weights)
        for name in (name for name in weights if name.endswith(("gate_up_proj", "down_proj"))):
            dtype, shape, raw = weights[name]
            values = _array(dtype, shape, raw).swapaxes(1, 2)
            changed[name] = (dtype, values.shape, values.tobytes())
        return changed

    rewrite(folder, change)


def pack_experts(folder: Path) -> None:
    """Store a layer's experts in two tensors, as Qwen3.5-35B-A3B is published."""

    def change(weights: Weights) -> Weights:
        kept = {name: entry for name, entry in weights.items() if not _EXPERT.match(name)}
        found: dict[str, dict[tuple[int, str], tuple[str, tuple[int, ...], bytes]]] = {}
        for name, entry in weights.items():
            if match := _EXPERT.match(name):
                found.setdefault(match[1], {})[int(match[2]), match[3]] = entry
        for prefix, entries in found.items():
            n_experts = 1 + max(number for number, _ in entries)
            for target, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
                chosen = [entries[number, part] for number in range(n_experts) for part in parts]
                dtype, (n_rows, n_columns), _ = chosen[0]
                shape = (n_experts, n_rows * len(parts), n_columns)
                kept[f"{prefix}{target}"] = (dtype, shape, b"".join(raw for _, _, raw in chosen))
        return kept

    rewrite(folder, change)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Change a checkpoint's weights; afterwards they stand in one file."""
    weights: Weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = split_safetensors(path)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            weights[name] = (entry["dtype"], tuple(entry["shape"]), data[begin:end])
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    write_safetensors(folder / "model.safetensors", change(weights))


def _array(dtype: str, shape: tuple[int, ...], raw: bytes) -> NDArray[Any]:
    return np.frombuffer(raw, dtype=f"<u{_ITEM_BYTES[dtype]}").reshape(shape)
