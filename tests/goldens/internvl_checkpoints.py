"""InternVL's checkpoints as OpenGVLab has them: other names, query, key and value in one matrix."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.convert.tricks import split_safetensors
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_safetensors

_VISION = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "encoder.layer.": "encoder.layers.",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "vision_tower.": "vision_model.",
}
_PROJECTOR = {"layer_norm.": "0.", "linear_1.": "1.", "linear_2.": "3."}


def as_opengvlab(folder: Path) -> None:
    """Turn a checkpoint of transformers into one of OpenGVLab's form; its tokenizer stays."""
    rename_and_join(folder)
    write_opengvlab_settings(folder)


def write_opengvlab_settings(folder: Path) -> None:
    """Give a checkpoint whose tensors have OpenGVLab's names its settings."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", opengvlab_config(config, settings))
    kept = {key: settings[key] for key in ("image_mean", "image_std")}
    side = config["vision_config"]["image_size"][0]
    write_json(
        folder / "preprocessor_config.json",
        {
            **kept,
            "crop_size": side,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "resample": 3,
            "size": side,
        },
    )


def opengvlab_config(config: Config, settings: Config) -> Config:
    """Return config.json of OpenGVLab's form for one of transformers'."""
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    rope = text.pop("rope_parameters")
    names = {"qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
    text |= {
        "architectures": [f"{names[text['model_type']]}ForCausalLM"],
        # No other than the base within the context that it names.
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    sides = {key: vision.pop(key)[0] for key in ("image_size", "patch_size")}
    vision |= {
        **sides,
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "norm_type": vision.get("norm_type", "layer_norm"),
        "qk_normalization": vision.pop("use_qk_norm", False),
        "qkv_bias": vision.pop("attention_bias", False),
    }
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": config["downsample_ratio"],
        "dynamic_image_size": True,
        "force_image_size": sides["image_size"],
        "llm_config": text,
        "max_dynamic_patch": settings["max_patches"],
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": config["dtype"],
        "use_thumbnail": True,
        "vision_config": vision,
    }


def rename_and_join(folder: Path) -> None:
    """Write the weights again under OpenGVLab's names, in one file."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = split_safetensors(path)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            part = data[slice(*entry["data_offsets"])]
            tensors[opengvlab_name(name)] = (entry["dtype"], tuple(entry["shape"]), part)
        path.unlink()
    joined: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, tensor in tensors.items():
        if "attention.q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            shape = (3 * tensor[1][0], *tensor[1][1:])
            whole = b"".join(part[2] for part in parts)
            joined[name.replace("attention.q_proj", "attn.qkv")] = (tensor[0], shape, whole)
        elif "attention.k_proj" not in name and "attention.v_proj" not in name:
            joined[name] = tensor
    (folder / "model.safetensors.index.json").unlink()
    write_safetensors(folder / "model.safetensors", joined)


def opengvlab_name(name: str) -> str:
    """Return OpenGVLab's name of a tensor of transformers' form, query, key and value apart."""
    if name.startswith("vision_tower."):
        for ours, theirs in _VISION.items():
            name = name.replace(ours, theirs)
    if name.startswith("multi_modal_projector."):
        name = name.replace("multi_modal_projector.", "mlp1.")
        for ours, theirs in _PROJECTOR.items():
            name = name.replace(ours, theirs)
    return name


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return every tensor that transformers saves, by name, and its shape; experts one by one."""
    vision, text = config["vision_config"], config["text_config"]
    width, n_merged = text["hidden_size"], 4 * vision["hidden_size"]
    shapes = {**_text_shapes(text, tied=config["tie_word_embeddings"]), **_vision_shapes(vision)}
    projector = {
        "layer_norm": (n_merged,),
        "linear_1": (width, n_merged),
        "linear_2": (width, width),
    }
    for name, shape in projector.items():
        shapes |= _with_bias(f"multi_modal_projector.{name}", shape)
    return shapes


def opengvlab_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the same in OpenGVLab's form."""
    joined: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_shapes(config).items():
        other = opengvlab_name(name)
        if other.startswith("vision_model.") and "_proj." in other:
            other = re.sub(r"attention\.._proj", "attn.qkv", other)
            shape = (3 * shape[0], *shape[1:])
        joined[other] = shape
    return joined


def _with_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _vision_shapes(vision: Config) -> dict[str, tuple[int, ...]]:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patch, side = vision["patch_size"][0], vision["image_size"][0]
    prefix = "vision_tower.embeddings."
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}cls_token": (1, 1, width),
        f"{prefix}position_embeddings": (1, (side // patch) ** 2 + 1, width),
        **_with_bias(f"{prefix}patch_embeddings.projection", (width, 3, patch, patch)),
    }
    for layer in range(vision["num_hidden_layers"]):
        block = f"vision_tower.encoder.layer.{layer}."
        shapes |= {f"{block}lambda_{number}": (width,) for number in (1, 2)}
        for name in ("layernorm_before", "layernorm_after"):
            shapes[f"{block}{name}.weight"] = (width,)
            if vision.get("norm_type", "layer_norm") == "layer_norm":
                shapes[f"{block}{name}.bias"] = (width,)
        for letter in "qkv":
            shapes[f"{block}attention.{letter}_proj.weight"] = (width, width)
            if vision["attention_bias"]:
                shapes[f"{block}attention.{letter}_proj.bias"] = (width,)
        for letter in "qk" if vision.get("use_qk_norm") else "":
            shapes[f"{block}attention.{letter}_norm.weight"] = (width,)
        shapes |= _with_bias(f"{block}attention.projection_layer", (width, width))
        shapes |= _with_bias(f"{block}mlp.fc1", (inner, width))
        shapes |= _with_bias(f"{block}mlp.fc2", (width, inner))
    return shapes


def _text_shapes(text: Config, *, tied: bool) -> dict[str, tuple[int, ...]]:
    width, head = text["hidden_size"], text["head_dim"]
    is_qwen2 = text["model_type"] == "qwen2"
    n_query, n_key = (head * text[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    embedding = (text["vocab_size"], width)
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": embedding,
        "language_model.model.norm.weight": (width,),
        **({} if tied else {"language_model.lm_head.weight": embedding}),
    }
    for layer in range(text["num_hidden_layers"]):
        block = f"language_model.model.layers.{layer}."
        attention = f"{block}self_attn."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{name}.weight"] = (width,)
        for letter, n_out in (("q", n_query), ("k", n_key), ("v", n_key)):
            shapes[f"{attention}{letter}_proj.weight"] = (n_out, width)
            if is_qwen2:
                shapes[f"{attention}{letter}_proj.bias"] = (n_out,)
        shapes[f"{attention}o_proj.weight"] = (width, n_query)
        for letter in "" if is_qwen2 else "qk":
            shapes[f"{attention}{letter}_norm.weight"] = (head,)
        n_experts, inner = text.get("num_experts", 0), text["intermediate_size"]
        if n_experts:
            shapes[f"{block}mlp.gate.weight"] = (n_experts, width)
            inner = text["moe_intermediate_size"]
        for expert in range(n_experts) or ("",):
            mlp = f"{block}mlp.experts.{expert}." if n_experts else f"{block}mlp."
            shapes |= {f"{mlp}{name}_proj.weight": (inner, width) for name in ("gate", "up")}
            shapes[f"{mlp}down_proj.weight"] = (width, inner)
    return shapes
