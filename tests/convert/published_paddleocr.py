"""The configuration of PaddleOCR-VL-0.9B as published, and the tensors of such a checkpoint.

No hub was at hand: put together from the defaults of transformers' classes, its
conversion_mapping.py and memory; bounds of pixels as in PaddleX's image processor.
"""

from __future__ import annotations

from tests.goldens.recipe import Config

Shapes = dict[str, tuple[int, ...]]
# Keys of the text model stand at the root, as transformers 4 wrote them.
FLAT: Config = {
    "architectures": ["PaddleOCRVLForConditionalGeneration"],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "image_token_id": 100295,
    "intermediate_size": 3072,
    "max_position_embeddings": 131072,
    "model_type": "paddleocr_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 18,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "use_bias": False,
    "vision_config": {
        "architectures": ["PaddleOCRVisionModel"],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-06,
        "model_type": "paddleocr_vl",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_start_token_id": 101305,
    "vocab_size": 103424,
}
PREPROCESSOR: Config = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 2822400,
    "merge_size": 2,
    "min_pixels": 147384,
    "patch_size": 14,
    "resample": 3,
    "temporal_patch_size": 1,
}


def tensor_shapes(config: Config, *, unused: bool = True) -> Shapes:
    """Return every tensor of a checkpoint by its published name, and its shape."""
    text = config.get("text_config", config)
    width, n_rows = text["hidden_size"], text["vocab_size"]
    shapes: Shapes = {
        "lm_head.weight": (n_rows, width),
        "model.embed_tokens.weight": (n_rows, width),
        "model.norm.weight": (width,),
    }
    n_query = text["num_attention_heads"] * text["head_dim"]
    n_key = text["num_key_value_heads"] * text["head_dim"]
    n_ff = text["intermediate_size"]
    layer: Shapes = {
        "input_layernorm": (width,),
        "mlp.down_proj": (width, n_ff),
        "mlp.gate_proj": (n_ff, width),
        "mlp.up_proj": (n_ff, width),
        "post_attention_layernorm": (width,),
        "self_attn.k_proj": (n_key, width),
        "self_attn.o_proj": (width, n_query),
        "self_attn.q_proj": (n_query, width),
        "self_attn.v_proj": (n_key, width),
    }
    for number in range(text["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": one for name, one in layer.items()}
    return shapes | _vision(config["vision_config"], width, unused=unused)


def _vision(vision: Config, n_out: int, *, unused: bool) -> Shapes:
    width, n_ff, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    prefix = "visual.vision_model."
    both: Shapes = {
        "mlp_AR.linear_1": (4 * width, 4 * width),
        "mlp_AR.linear_2": (n_out, 4 * width),
        "mlp_AR.pre_norm": (width,),
        f"{prefix}embeddings.patch_embedding": (width, 3, patch, patch),
        f"{prefix}post_layernorm": (width,),
    }
    block: Shapes = {
        "layer_norm1": (width,),
        "layer_norm2": (width,),
        "mlp.fc1": (n_ff, width),
        "mlp.fc2": (width, n_ff),
        **{f"self_attn.{name}_proj": (width, width) for name in ("k", "out", "q", "v")},
    }
    for number in range(vision["num_hidden_layers"]):
        both |= {f"{prefix}encoder.layers.{number}.{name}": one for name, one in block.items()}
    head: Shapes = {
        "attention.out_proj": (width, width),
        "layernorm": (width,),
        "mlp.fc1": (n_ff, width),
        "mlp.fc2": (width, n_ff),
    }
    if unused:
        both |= {f"{prefix}head.{name}": one for name, one in head.items()}
    shapes: Shapes = {f"{name}.weight": one for name, one in both.items()}
    shapes |= {f"{name}.bias": one[:1] for name, one in both.items()}
    n_positions = (vision["image_size"] // patch) ** 2
    shapes[f"{prefix}embeddings.position_embedding.weight"] = (n_positions, width)
    if unused:
        shapes[f"{prefix}embeddings.packing_position_embedding.weight"] = (32768, width)
        shapes[f"{prefix}head.attention.in_proj_weight"] = (3 * width, width)
        shapes[f"{prefix}head.attention.in_proj_bias"] = (3 * width,)
        shapes[f"{prefix}head.probe"] = (1, 1, width)
    return shapes
