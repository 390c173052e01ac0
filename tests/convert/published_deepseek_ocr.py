"""DeepSeek-OCR and DeepSeek-OCR 2 as published: configurations, tensors of such checkpoints.

No hub was at hand: numbers are those of llama.cpp's converter (conversion/deepseek.py), of
transformers' conversion_mapping.py and of memory; vocabulary and experts are DeepSeek-OCR's.
"""

from __future__ import annotations

from tests.goldens.recipe import Config

Shapes = dict[str, tuple[int, ...]]
# DeepSeek's own class, whose code is in the repository.
PUBLISHED: Config = {
    "architectures": ["DeepseekOCR2ForCausalLM"],
    "candidate_resolutions": [[1024, 1024]],
    "global_view_pos": "head",
    "language_config": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "hidden_size": 1280,
        "intermediate_size": 6848,
        "kv_lora_rank": None,
        "lm_head": True,
        "max_position_embeddings": 8192,
        "moe_intermediate_size": 896,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 10,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 12,
        "num_key_value_heads": 10,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "v_head_dim": 0,
        "vocab_size": 129280,
    },
    "model_type": "deepseek_vl_v2",
    "projector_config": {
        "input_dim": 896,
        "model_type": "mlp_projector",
        "n_embed": 1280,
        "projector_type": "linear",
    },
    "tile_tag": "2D",
    "vision_config": {
        "image_size": 1024,
        "mlp_ratio": 3.7362,
        "model_name": "deepencoderv2",
        "model_type": "vision",
        "width": {
            "qwen2-0-5b": {"dim": 896},
            "sam_vit_b": {
                "global_attn_indexes": [2, 5, 8, 11],
                "heads": 12,
                "layers": 12,
                "width": 768,
            },
        },
    },
}
FIRST: Config = {
    **PUBLISHED,
    "architectures": ["DeepseekOCRForCausalLM"],
    "projector_config": {**PUBLISHED["projector_config"], "input_dim": 2048},
    "vision_config": {
        **PUBLISHED["vision_config"],
        "model_name": "deeplip_b_l",
        "width": {
            "clip-l-14-224": {
                "heads": 16,
                "image_size": 224,
                "layers": 24,
                "patch_size": 14,
                "width": 1024,
            },
            "sam_vit_b": {
                **PUBLISHED["vision_config"]["width"]["sam_vit_b"],
                "downsample_channels": [512, 1024],
            },
        },
    },
}
PROCESSOR: Config = {
    "candidate_resolutions": [[1024, 1024]],
    "downsample_ratio": 4,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_token": "<image>",
    "normalize": True,
    "patch_size": 16,
    "processor_class": "DeepseekVLV2Processor",
}


def tensor_shapes() -> Shapes:
    """Return the tensors of the published size by DeepSeek's own names."""
    return {**_text(1280, 6848, 896, 64), **_sam(768, 3072, 12), **_encoder(896, 4864, 24)}


def first_shapes() -> Shapes:
    """Return the tensors of DeepSeek-OCR's published size, by the same names."""
    shapes = {**_text(1280, 6848, 896, 64), **_sam(768, 3072, 12), **_clip(1024, 24)}
    return {
        **shapes,
        "model.image_newline": (1280,),
        "model.projector.layers.weight": (1280, 2048),
        "model.sam_model.net_3.weight": (1024, 512, 3, 3),
    }


def _clip(width: int, n_layers: int) -> Shapes:
    stem = "model.vision_model."
    shapes: Shapes = {
        f"{stem}embeddings.class_embedding": (width,),
        f"{stem}embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{stem}embeddings.position_embedding.weight": (257, width),
        f"{stem}pre_layrnorm.weight": (width,),
        f"{stem}pre_layrnorm.bias": (width,),
    }
    for layer in range(n_layers):
        for name, shape in {
            "layer_norm1": (width,),
            "layer_norm2": (width,),
            "self_attn.qkv_proj": (3 * width, width),
            "self_attn.out_proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            block = f"{stem}transformer.layers.{layer}.{name}"
            shapes |= {f"{block}.weight": shape, f"{block}.bias": shape[:1]}
    return shapes


def new_names(shapes: Shapes) -> Shapes:
    """Return the same by the names of transformers' class, its experts packed."""
    renamed: Shapes = {}
    for name, shape in shapes.items():
        if ".experts." not in name:
            renamed[new_name(name)] = shape
    for layer in range(1, 12):
        stem = f"model.language_model.layers.{layer}.mlp.experts."
        renamed[f"{stem}gate_up_proj"] = (64, 2 * 896, 1280)
        renamed[f"{stem}down_proj"] = (64, 1280, 896)
    return renamed


def new_name(name: str) -> str:
    """Return transformers' name of a tensor that is no expert's."""
    for old, new in _PARTS.items():
        if name.startswith(old):
            name = name.replace(old, new)
            break
    else:
        if name.startswith("model."):
            name = name.replace("model.", "model.language_model.", 1)
    if ".sam_encoder." in name:
        for old, new in _SAM_NAMES.items():
            name = name.replace(old, new)
    return name


_PARTS = {
    "model.sam_model.": "model.vision_tower.sam_encoder.",
    "model.qwen2_model.model.model.": "model.vision_tower.vision_encoder.",
    "model.qwen2_model.query_768": "model.vision_tower.query_768_resolution",
    "model.qwen2_model.query_1024": "model.vision_tower.query_1024_resolution",
    "model.projector.layers": "model.multi_modal_projector",
    "model.view_seperator": "model.view_separator",
}
_SAM_NAMES = {
    "blocks.": "layers.",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "patch_embed.proj": "patch_embed.projection",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "net_2": "proj.conv1",
    "net_3": "proj.conv2",
}


def _text(n_embd: int, n_ff: int, n_expert_ff: int, n_experts: int) -> Shapes:
    shapes: Shapes = {
        "lm_head.weight": (129280, n_embd),
        "model.embed_tokens.weight": (129280, n_embd),
        "model.norm.weight": (n_embd,),
        "model.projector.layers.weight": (n_embd, 896),
        "model.projector.layers.bias": (n_embd,),
        "model.view_seperator": (n_embd,),
    }
    for layer in range(12):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (n_embd,)
        for letter in "qkvo":
            shapes[f"{prefix}self_attn.{letter}_proj.weight"] = (n_embd, n_embd)
        widths = {"": n_ff}
        if layer:
            shapes[f"{prefix}mlp.gate.weight"] = (n_experts, n_embd)
            widths = {f"experts.{number}.": n_expert_ff for number in range(n_experts)}
            widths["shared_experts."] = 2 * n_expert_ff
        for stem, width in widths.items():
            for name in ("gate_proj", "up_proj"):
                shapes[f"{prefix}mlp.{stem}{name}.weight"] = (width, n_embd)
            shapes[f"{prefix}mlp.{stem}down_proj.weight"] = (n_embd, width)
    return shapes


def _sam(n_embd: int, n_ff: int, n_head: int) -> Shapes:
    stem = "model.sam_model."
    shapes: Shapes = {
        f"{stem}pos_embed": (1, 64, 64, n_embd),
        f"{stem}patch_embed.proj.weight": (n_embd, 3, 16, 16),
        f"{stem}patch_embed.proj.bias": (n_embd,),
        f"{stem}neck.0.weight": (256, n_embd, 1, 1),
        f"{stem}neck.2.weight": (256, 256, 3, 3),
        f"{stem}net_2.weight": (512, 256, 3, 3),
        f"{stem}net_3.weight": (896, 512, 3, 3),
    }
    for norm in ("neck.1", "neck.3"):
        shapes |= {f"{stem}{norm}.{kind}": (256,) for kind in ("weight", "bias")}
    for layer in range(12):
        side = 64 if layer in (2, 5, 8, 11) else 14
        block = f"{stem}blocks.{layer}."
        for name, shape in {
            "norm1": (n_embd,),
            "norm2": (n_embd,),
            "attn.qkv": (3 * n_embd, n_embd),
            "attn.proj": (n_embd, n_embd),
            "mlp.lin1": (n_ff, n_embd),
            "mlp.lin2": (n_embd, n_ff),
        }.items():
            shapes[f"{block}{name}.weight"] = shape
            shapes[f"{block}{name}.bias"] = shape[:1]
        for letter in "hw":
            shapes[f"{block}attn.rel_pos_{letter}"] = (2 * side - 1, n_embd // n_head)
    return shapes


def _encoder(n_embd: int, n_ff: int, n_layers: int) -> Shapes:
    stem = "model.qwen2_model."
    shapes: Shapes = {
        f"{stem}query_768.weight": (144, n_embd),
        f"{stem}query_1024.weight": (256, n_embd),
        f"{stem}model.model.norm.weight": (n_embd,),
    }
    n_kv = n_embd // 14 * 2
    for layer in range(n_layers):
        block = f"{stem}model.model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{name}.weight"] = (n_embd,)
        for letter, width in (("q", n_embd), ("k", n_kv), ("v", n_kv)):
            shapes[f"{block}self_attn.{letter}_proj.weight"] = (width, n_embd)
            shapes[f"{block}self_attn.{letter}_proj.bias"] = (width,)
        shapes[f"{block}self_attn.o_proj.weight"] = (n_embd, n_embd)
        shapes[f"{block}mlp.gate_proj.weight"] = (n_ff, n_embd)
        shapes[f"{block}mlp.up_proj.weight"] = (n_ff, n_embd)
        shapes[f"{block}mlp.down_proj.weight"] = (n_embd, n_ff)
    return shapes
