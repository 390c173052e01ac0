"""A checkpoint of transformers as Mistral publishes it: params.json, consolidated, tekken.json."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any, cast

import numpy as np

from tests.convert.tricks import split_safetensors
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_safetensors
from tests.synthetic_tokenizer import byte_letters
from tests.tokenizers.byte_level import TEKKEN_REGEX

_OUTER = {
    "language_model.lm_head.weight": "output.weight",
    "language_model.model.embed_tokens.weight": "tok_embeddings.weight",
    "language_model.model.norm.weight": "norm.weight",
    "multi_modal_projector.linear_1.bias": "vision_language_adapter.w_in.bias",
    "multi_modal_projector.linear_1.weight": "vision_language_adapter.w_in.weight",
    "multi_modal_projector.linear_2.bias": "vision_language_adapter.w_out.bias",
    "multi_modal_projector.linear_2.weight": "vision_language_adapter.w_out.weight",
    "multi_modal_projector.norm.weight": "pre_mm_projector_norm.weight",
    "multi_modal_projector.patch_merger.merging_layer.weight": "patch_merger.merging_layer.weight",
    "vision_tower.ln_pre.weight": "vision_encoder.ln_pre.weight",
    "vision_tower.patch_conv.weight": "vision_encoder.patch_conv.weight",
}
_INNER = {
    "attention.k_proj": "attention.wk",
    "attention.o_proj": "attention.wo",
    "attention.q_proj": "attention.wq",
    "attention.v_proj": "attention.wv",
    "attention_norm": "attention_norm",
    "feed_forward.down_proj": "feed_forward.w2",
    "feed_forward.gate_proj": "feed_forward.w1",
    "feed_forward.up_proj": "feed_forward.w3",
    "ffn_norm": "ffn_norm",
    "input_layernorm": "attention_norm",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.k_proj": "attention.wk",
    "self_attn.o_proj": "attention.wo",
    "self_attn.q_proj": "attention.wq",
    "self_attn.v_proj": "attention.wv",
}
_LAYER = re.compile(
    r"(language_model\.model\.|vision_tower\.transformer\.)(layers\.\d+\.)(.*)\.weight"
)


def mistral_name(name: str) -> str:
    """Return the name that Mistral gives a tensor of transformers."""
    if name in _OUTER:
        return _OUTER[name]
    match = _LAYER.fullmatch(name)
    assert match, name
    prefix = "vision_encoder.transformer." if match[1].startswith("vision") else ""
    return f"{prefix}{match[2]}{_INNER[match[3]]}.weight"


def as_mistral(folder: Path, *, special: bool = True) -> None:
    """Rewrite a checkpoint of Pixtral or Mistral 3 in place.

    Args:
        folder: of the checkpoint.
        special: whether tekken.json lists its control tokens.
    """
    config = read_golden_json(folder / "config.json")
    heads = {
        "wq": config["text_config"]["num_attention_heads"],
        "wk": config["text_config"]["num_key_value_heads"],
    }
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        header, data = split_safetensors(shard)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found, shape = mistral_name(name), tuple(entry["shape"])
            raw = data[begin:end]
            kind = found.split(".")[-2]
            if kind in heads:
                n = (
                    config["vision_config"]["num_attention_heads"]
                    if "vision" in found
                    else heads[kind]
                )
                raw = _paired(raw, shape, n)
            tensors[found] = (entry["dtype"], shape, raw)
        shard.unlink()
    for name in ("model.safetensors.index.json", "config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    write_safetensors(folder / "consolidated.safetensors", dict(sorted(tensors.items())))
    write_json(folder / "params.json", params(config))
    write_json(folder / "tekken.json", tekken(folder, special=special))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()


def _paired(raw: bytes, shape: tuple[int, ...], n_heads: int) -> bytes:
    """Put row i of a head beside the row that it is rotated with, as Mistral has them."""
    rows = np.frombuffer(raw, dtype="<u2").reshape(n_heads, 2, -1, shape[-1])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes()


def params(config: Config) -> Config:
    """Return params.json for a config.json."""
    text, vision = config["text_config"], config["vision_config"]
    rope = text["rope_parameters"]
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_channels")
    keys += ("num_hidden_layers", "patch_size", "image_size")
    tower = {key: vision[key] for key in keys}
    tower |= {"rope_theta": 10000.0, "image_token_id": 5, "image_break_token_id": 7}
    tower |= {"image_end_token_id": 8, "adapter_bias": config["multimodal_projector_bias"]}
    if "spatial_merge_size" in config:
        tower |= {
            "add_pre_mm_projector_layer_norm": True,
            "max_image_size": vision["image_size"],
            "mm_projector_id": "patch_merge",
            "spatial_merge_size": config["spatial_merge_size"],
        }
    values: Config = {
        "dim": text["hidden_size"],
        "head_dim": text["head_dim"],
        "hidden_dim": text["intermediate_size"],
        "max_position_embeddings": text["max_position_embeddings"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "n_layers": text["num_hidden_layers"],
        "norm_eps": text["rms_norm_eps"],
        "rope_theta": rope["rope_theta"],
        "tied_embeddings": False,
        "vision_encoder": tower,
        "vocab_size": text["vocab_size"],
    }
    if rope["rope_type"] == "yarn":
        original = rope["original_max_position_embeddings"]
        values["yarn"] = {
            "alpha": rope["beta_slow"],
            "apply_scale": False,
            "beta": rope["beta_fast"],
            "factor": rope["factor"],
            "original_max_position_embeddings": original,
        }
        values["llama_4_scaling"] = {
            "beta": rope["llama_4_scaling_beta"],
            "original_max_position_embeddings": original,
        }
    return values


def tekken(folder: Path, *, special: bool = True) -> Config:
    """Return the tekken.json of a folder's tokenizer.json."""
    tokenizer = read_golden_json(folder / "tokenizer.json")
    bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    control = [token["content"] for token in cast(list[Config], tokenizer["added_tokens"])]
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted((token for token in ids if token not in control), key=lambda token: ids[token])
    vocab = [
        {
            "rank": rank,
            "token_bytes": base64.b64encode(bytes(bytes_of[one] for one in token)).decode(),
            "token_str": None,
        }
        for rank, token in enumerate(tokens)
    ]
    document: dict[str, Any] = {
        "config": {
            "default_num_special_tokens": len(control),
            "default_vocab_size": len(control) + len(tokens),
            "num_vocab_tokens": len(tokens),
            "pattern": TEKKEN_REGEX,
            "version": "v13" if special else "v3",
        },
        "image": {"image_patch_size": 16, "max_image_size": 256, "spatial_merge_size": 1},
        "vocab": vocab,
    }
    if special:
        document["special_tokens"] = [
            {"is_control": True, "rank": rank, "token_str": token}
            for rank, token in enumerate(control)
        ]
    return document
