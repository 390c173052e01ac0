"""HunyuanOCR's configuration as published, and the tensors of such a checkpoint.

No hub was at hand: put together from the defaults of transformers' classes, its
conversion_mapping.py, public ports of the model and memory.
"""

from __future__ import annotations

from tests.goldens.recipe import Config

Shapes = dict[str, tuple[int, ...]]
# Keys of the text model stand at the root.
FLAT: Config = {
    "architectures": ["HunYuanVLForConditionalGeneration"],
    "attention_bias": False,
    "attention_head_dim": 128,
    "bos_token_id": 120000,
    "eod_token_id": 120020,
    "eos_token_id": 120020,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "image_token_id": 120120,
    "intermediate_size": 3584,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "model_type": "hunyuan_vl",
    "num_attention_heads": 16,
    "num_experts": 1,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "pad_id": 120002,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "alpha": 1000.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "type": "xdrope",
        "xdrope_section": [16, 16, 16, 16],
    },
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "use_cla": False,
    "use_qk_norm": True,
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 1152,
        "interpolate_mode": "bilinear",
        "intermediate_size": 4304,
        "max_image_size": 2048,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 27,
        "out_hidden_size": 1024,
        "patch_size": 16,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "text_hidden_size": 1024,
    },
    "vocab_size": 120818,
}
PREPROCESSOR: Config = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 4194304,
    "merge_size": 2,
    "min_pixels": 262144,
    "patch_size": 16,
    "resample": 1,
    "temporal_patch_size": 1,
}
_NEW_NAMES = {
    "input_layernorm": "layer_norm1",
    "post_attention_layernorm": "layer_norm2",
    "dense_h_to_4h": "fc1",
    "dense_4h_to_h": "fc2",
    "perceive.proj.0": "patch_merger.proj_conv",
    "perceive.proj.2": "patch_merger.proj_out",
    "perceive": "patch_merger",
}


def new_name(name: str) -> str:
    """Return a tensor's name in transformers' class by the one that it is saved under."""
    if not name.startswith("vit."):
        return name.replace("model.", "model.language_model.", 1)
    for old, new in _NEW_NAMES.items():
        name = name.replace(old, new)
    return name.replace("vit.", "model.vision_tower.", 1)


def tensor_shapes(config: Config) -> Shapes:
    """Return the tensors of a checkpoint, as Tencent names them."""
    text = config.get("text_config", config)
    n_embd, n_ff = text["hidden_size"], text["intermediate_size"]
    head = text.get("head_dim") or text["attention_head_dim"]
    n_query, n_key = (text[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    shapes: Shapes = {
        "model.embed_tokens.weight": (text["vocab_size"], n_embd),
        "model.norm.weight": (n_embd,),
    }
    for layer in range(text["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (n_embd,),
            "post_attention_layernorm": (n_embd,),
            "self_attn.q_proj": (n_query, n_embd),
            "self_attn.k_proj": (n_key, n_embd),
            "self_attn.v_proj": (n_key, n_embd),
            "self_attn.o_proj": (n_embd, n_query),
            "self_attn.query_layernorm": (head,),
            "self_attn.key_layernorm": (head,),
            "mlp.gate_proj": (n_ff, n_embd),
            "mlp.up_proj": (n_ff, n_embd),
            "mlp.down_proj": (n_embd, n_ff),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {**shapes, **_vision(config["vision_config"], n_embd)}


def _vision(vision: Config, n_text: int) -> Shapes:
    width, n_ff, patch = (vision[key] for key in ("hidden_size", "intermediate_size", "patch_size"))
    n_positions = (vision["max_image_size"] // patch) ** 2 + 1
    both: Shapes = {
        "embeddings.patch_embedding": (width, 3, patch, patch),
        "perceive.proj.0": (2 * width, width, 2, 2),
        "perceive.proj.2": (4 * width, 2 * width, 1, 1),
        "perceive.mlp": (n_text, 4 * width),
    }
    for layer in range(vision["num_hidden_layers"]):
        stem = f"layers.{layer}."
        both |= {f"{stem}self_attn.{letter}_proj": (width, width) for letter in "qkvo"}
        both |= {
            f"{stem}{name}": (width,) for name in ("input_layernorm", "post_attention_layernorm")
        }
        both[f"{stem}mlp.dense_h_to_4h"] = (n_ff, width)
        both[f"{stem}mlp.dense_4h_to_h"] = (width, n_ff)
    shapes: Shapes = {
        "vit.embeddings.position_embedding.weight": (n_positions, width),
        "vit.perceive.before_rms.weight": (width,),
        "vit.perceive.after_rms.weight": (n_text,),
        "vit.perceive.image_newline": (4 * width,),
        **{f"vit.perceive.image_{name}": (n_text,) for name in ("begin", "end", "sep")},
    }
    for name, shape in both.items():
        shapes |= {f"vit.{name}.weight": shape, f"vit.{name}.bias": shape[:1]}
    return shapes
