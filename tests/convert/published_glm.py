"""GLM-OCR, GLM-4.1V and GLM-4.5V as published: configurations, and the tensors of checkpoints.

Put together from public copies of their config.json: GLM-OCR's from a fine-tuner's documentation
(Vastai VastModelZOO), its 526 tensors and their sum from zhutao100/GLM-OCR-Swift
(docs/GLM-OCR_model.md), the names of its layer for multi-token prediction from vLLM's and sglang's
loaders; GLM-4.1V-9B's (GLM-4.6V-Flash has the same shapes) from an audit of transformers' class;
GLM-4.5V's from llama.cpp pull request 15026 about its text model, transformers' defaults for the
rest, and its experts one by one from memory of transformers 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.goldens.recipe import Config

Shapes = dict[str, tuple[int, ...]]
_VISION: Config = {
    "depth": 24,
    "hidden_act": "silu",
    "image_size": 336,
    "in_channels": 3,
    "patch_size": 14,
    "rms_norm_eps": 1e-05,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PUBLISHED: Mapping[str, Config] = {
    "GLM-OCR": {
        "architectures": ["GlmOcrForConditionalGeneration"],
        "image_token_id": 59280,
        "model_type": "glm_ocr",
        "text_config": {
            "attention_bias": False,
            "eos_token_id": [59246, 59253],
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "intermediate_size": 4608,
            "max_position_embeddings": 131072,
            "model_type": "glm_ocr_text",
            "num_attention_heads": 16,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "num_nextn_predict_layers": 1,
            "pad_token_id": 59246,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {
                "mrope_section": [16, 24, 24],
                "partial_rotary_factor": 1.0,
                "rope_theta": 10000,
                "rope_type": "default",
            },
            "vocab_size": 59392,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            **_VISION,
            "attention_bias": True,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "model_type": "glm_ocr_vision",
            "num_heads": 16,
            "out_hidden_size": 1536,
        },
    },
    "GLM-4.1V-9B": {
        "architectures": ["Glm4vForConditionalGeneration"],
        "image_token_id": 151343,
        "model_type": "glm4v",
        "text_config": {
            "attention_bias": True,
            "eos_token_id": [151329, 151336, 151338, 151348],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "max_position_embeddings": 65536,
            "model_type": "glm4v_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"},
            "rope_theta": 10000.0,
            "vocab_size": 151552,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            **_VISION,
            "attention_bias": False,
            "hidden_size": 1536,
            "intermediate_size": 13696,
            "model_type": "glm4v",
            "num_heads": 12,
            "out_hidden_size": 4096,
        },
    },
    "GLM-4.5V": {
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "image_token_id": 151363,
        "model_type": "glm4v_moe",
        "text_config": {
            "attention_bias": True,
            "eos_token_id": [151329, 151336, 151338],
            "first_k_dense_replace": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "max_position_embeddings": 65536,
            "model_type": "glm4v_moe_text",
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 96,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 46,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"},
            "rope_theta": 10000.0,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "vocab_size": 151552,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            **_VISION,
            "attention_bias": False,
            "hidden_size": 1536,
            "intermediate_size": 10944,
            "model_type": "glm4v_moe",
            "num_heads": 12,
            "out_hidden_size": 4096,
        },
    },
}


def tensor_shapes(config: Config) -> Shapes:
    """Return every tensor of a checkpoint by name, and its shape."""
    text = config["text_config"]
    shapes: Shapes = {
        "lm_head.weight": (text["vocab_size"], text["hidden_size"]),
        "model.language_model.embed_tokens.weight": (text["vocab_size"], text["hidden_size"]),
        "model.language_model.norm.weight": (text["hidden_size"],),
    }
    n_layers = text["num_hidden_layers"]
    n_predictors = text.get("num_nextn_predict_layers", 0)
    for layer in range(n_layers + n_predictors):
        prefix = f"model.language_model.layers.{layer}."
        make = _sparse_layer if "n_routed_experts" in text else _layer
        biased = config["model_type"] != "glm_ocr"
        shapes |= make(
            prefix, text, biased=biased, dense=layer < text.get("first_k_dense_replace", 0)
        )
        shapes |= predictor_shapes(prefix, text) if layer >= n_layers else {}
    return shapes | _tower(config["vision_config"], ocr=config["model_type"] == "glm_ocr")


def predictor_shapes(prefix: str, text: Config) -> Shapes:
    """Return what a layer for multi-token prediction has beyond an ordinary one."""
    width, n_rows = text["hidden_size"], text["vocab_size"]
    return {
        f"{prefix}eh_proj.weight": (width, 2 * width),
        f"{prefix}embed_tokens.weight": (n_rows, width),
        f"{prefix}enorm.weight": (width,),
        f"{prefix}hnorm.weight": (width,),
        f"{prefix}shared_head.head.weight": (n_rows, width),
        f"{prefix}shared_head.norm.weight": (width,),
    }


def _layer(prefix: str, text: Config, *, biased: bool, dense: bool = True) -> Shapes:
    del dense
    width, n_ff = text["hidden_size"], text["intermediate_size"]
    shapes = {
        **_attention(prefix, text, biased=biased),
        f"{prefix}mlp.gate_up_proj.weight": (2 * n_ff, width),
        f"{prefix}mlp.down_proj.weight": (width, n_ff),
    }
    for name in ("input", "post_attention", "post_self_attn", "post_mlp"):
        shapes[f"{prefix}{name}_layernorm.weight"] = (width,)
    return shapes


def _sparse_layer(prefix: str, text: Config, *, biased: bool, dense: bool) -> Shapes:
    width, n_ff = text["hidden_size"], text["moe_intermediate_size"]
    shapes = _attention(prefix, text, biased=biased)
    for name in ("input", "post_attention"):
        shapes[f"{prefix}{name}_layernorm.weight"] = (width,)
    if dense:
        return shapes | _gated(f"{prefix}mlp.", width, text["intermediate_size"])
    n_experts = text["n_routed_experts"]
    shapes[f"{prefix}mlp.gate.weight"] = (n_experts, width)
    shapes[f"{prefix}mlp.gate.e_score_correction_bias"] = (n_experts,)
    shapes |= _gated(f"{prefix}mlp.shared_experts.", width, text["n_shared_experts"] * n_ff)
    for number in range(n_experts):
        shapes |= _gated(f"{prefix}mlp.experts.{number}.", width, n_ff)
    return shapes


def _gated(prefix: str, width: int, n_ff: int) -> Shapes:
    return {
        f"{prefix}gate_proj.weight": (n_ff, width),
        f"{prefix}up_proj.weight": (n_ff, width),
        f"{prefix}down_proj.weight": (width, n_ff),
    }


def _attention(prefix: str, text: Config, *, biased: bool) -> Shapes:
    width = text["hidden_size"]
    head = text.get("head_dim", width // text["num_attention_heads"])
    n_query, n_key = (text[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    shapes: Shapes = {f"{prefix}self_attn.o_proj.weight": (width, n_query)}
    for name, n_out in (("q", n_query), ("k", n_key), ("v", n_key)):
        shapes[f"{prefix}self_attn.{name}_proj.weight"] = (n_out, width)
        if biased:
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (n_out,)
    return shapes


def _tower(vision: Config, *, ocr: bool) -> Shapes:
    width, n_out, inner = (
        vision[key] for key in ("hidden_size", "out_hidden_size", "intermediate_size")
    )
    n_ff, n_merged = (inner, 3 * n_out) if ocr else (n_out, inner)
    patch, shapes = vision["patch_size"], Shapes()

    def add(name: str, *shape: int, bias: bool = False) -> None:
        shapes[f"model.visual.{name}.weight"] = shape
        if bias:
            shapes[f"model.visual.{name}.bias"] = shape[:1]

    add("patch_embed.proj", width, 3, 2, patch, patch, bias=True)
    if not ocr:
        add("post_conv_layernorm", width)
        add("embeddings.position_embedding", (vision["image_size"] // patch) ** 2, width)
    for number in range(vision["depth"]):
        block = f"blocks.{number}."
        add(f"{block}norm1", width)
        add(f"{block}norm2", width)
        add(f"{block}attn.qkv", 3 * width, width, bias=ocr)
        add(f"{block}attn.proj", width, width, bias=ocr)
        add(f"{block}mlp.gate_proj", n_ff, width, bias=ocr)
        add(f"{block}mlp.up_proj", n_ff, width, bias=ocr)
        add(f"{block}mlp.down_proj", width, n_ff, bias=ocr)
        if ocr:
            add(f"{block}attn.q_norm", width // vision["num_heads"])
            add(f"{block}attn.k_norm", width // vision["num_heads"])
    add("post_layernorm", width)
    add("downsample", n_out, width, 2, 2, bias=True)
    add("merger.proj", n_out, n_out)
    add("merger.post_projection_norm", n_out, bias=True)
    add("merger.gate_proj", n_merged, n_out)
    add("merger.up_proj", n_merged, n_out)
    add("merger.down_proj", n_out, n_merged)
    return shapes
