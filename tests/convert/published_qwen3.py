"""The configurations of Qwen3-VL and Qwen3.5 as published, and the tensors of such checkpoints.

From the repositories of Qwen on the Hugging Face Hub; left out is what only training or generation
reads. Qwen3.6 and Qwen3.8 of the same sizes have the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.goldens.recipe import Config

Shapes = dict[str, tuple[int, ...]]
_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# Width, inner width, layers, heads and deepstack of the towers.
_TOWERS: Mapping[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "small": (768, 3072, 12, 12, ()),
    "middle": (1024, 4096, 24, 16, (5, 11, 17)),
    "large": (1152, 4304, 27, 16, (8, 16, 24)),
}


def _config(name: str, text: Config, *, tower: str, tied: bool, deepstack: bool) -> Config:
    width, inner, depth, heads, layers = _TOWERS[tower]
    model_type = {
        "Qwen3VL": "qwen3_vl",
        "Qwen3VLMoe": "qwen3_vl_moe",
        "Qwen3_5": "qwen3_5",
        "Qwen3_5Moe": "qwen3_5_moe",
    }[name]
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": model_type,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": f"{model_type}_text",
            "attention_bias": False,
            "hidden_act": "silu",
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-06,
            **text,
        },
        "vision_config": {
            "model_type": model_type,
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": width,
            "in_channels": 3,
            "intermediate_size": inner,
            "num_heads": heads,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "deepstack_visual_indexes": list(layers) if deepstack else [],
        },
    }


def _numbers(numbers: str) -> Config:
    return dict(zip(_KEYS, map(int, numbers.split()), strict=True))


def _qwen3_vl(numbers: str, *, tower: str, tied: bool = False, experts: int = 0) -> Config:
    """Return a configuration; `experts` is the width inside one of 128, 8 of which are used."""
    text: Config = {
        **_numbers(numbers),
        "head_dim": 128,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "vocab_size": 151936,
    }
    if experts:
        text |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": experts,
            "norm_topk_prob": True,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        }
    name = "Qwen3VLMoe" if experts else "Qwen3VL"
    return _config(name, text, tower=tower, tied=tied, deepstack=True)


def _qwen3_5(
    numbers: str, *, tower: str, values: int, tied: bool = False, experts: str = ""
) -> Config:
    """Return a configuration; `experts` are their number, those used, and the width inside one."""
    text: Config = {
        **_numbers(numbers),
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": values,
        "linear_value_head_dim": 128,
        "mlp_only_layers": [],
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": tied,
        "vocab_size": 248320,
    }
    layers = range(text["num_hidden_layers"])
    text["layer_types"] = [("full" if i % 4 == 3 else "linear") + "_attention" for i in layers]
    if experts:
        n_experts, n_used, n_ff = map(int, experts.split())
        del text["intermediate_size"]
        text |= {
            "moe_intermediate_size": n_ff,
            "num_experts": n_experts,
            "num_experts_per_tok": n_used,
            "shared_expert_intermediate_size": n_ff,
        }
    name = "Qwen3_5Moe" if experts else "Qwen3_5"
    return _config(name, text, tower=tower, tied=tied, deepstack=False)


PUBLISHED: Mapping[str, Config] = {
    "Qwen3-VL-2B": _qwen3_vl("2048 6144 28 16 8", tower="middle", tied=True),
    "Qwen3-VL-4B": _qwen3_vl("2560 9728 36 32 8", tower="middle", tied=True),
    "Qwen3-VL-8B": _qwen3_vl("4096 12288 36 32 8", tower="large"),
    "Qwen3-VL-32B": _qwen3_vl("5120 25600 64 64 8", tower="large"),
    "Qwen3-VL-30B-A3B": _qwen3_vl("2048 6144 48 32 4", tower="large", experts=768),
    "Qwen3-VL-235B-A22B": _qwen3_vl("4096 12288 94 64 4", tower="large", experts=1536),
    "Qwen3.5-0.8B": _qwen3_5("1024 3584 24 8 2", tower="small", values=16, tied=True),
    "Qwen3.5-2B": _qwen3_5("2048 6144 24 8 2", tower="middle", values=16, tied=True),
    "Qwen3.5-4B": _qwen3_5("2560 9216 32 16 4", tower="middle", values=32, tied=True),
    "Qwen3.5-9B": _qwen3_5("4096 12288 32 16 4", tower="large", values=32),
    "Qwen3.5-27B": _qwen3_5("5120 17408 64 24 4", tower="large", values=48),
    "Qwen3.5-35B-A3B": _qwen3_5("2048 0 40 16 2", tower="large", values=32, experts="256 8 512"),
    "Qwen3.5-122B-A10B": _qwen3_5("3072 0 48 32 2", tower="large", values=64, experts="256 8 1024"),
    "Qwen3.5-397B-A17B": _qwen3_5(
        "4096 0 60 32 2", tower="large", values=64, experts="512 10 1024"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a checkpoint stores its experts.

    Attributes:
        transposed: each matrix, as Qwen3-VL is published.
        one_by_one: in the layers, as transformers 5 saves Qwen3.5.
        mtp: whether there is an MTP layer, the experts of which are one by one.
    """

    transposed: bool = False
    one_by_one: bool = False
    mtp: bool = False


def tensor_shapes(config: Config, form: Form) -> Shapes:
    """Return every tensor of a checkpoint by name, and its shape.

    Args:
        config: config.json.
        form: how experts are stored.
    """
    text = config["text_config"]
    width, n_vocab = text["hidden_size"], text["vocab_size"]
    prefix = "model.language_model."
    shapes: Shapes = {
        f"{prefix}embed_tokens.weight": (n_vocab, width),
        f"{prefix}norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (n_vocab, width)
    for layer, linear in enumerate(_linear_layers(text)):
        shapes |= _layer(f"{prefix}layers.{layer}.", text, form, linear=linear)
    if form.mtp:
        shapes |= {
            "mtp.fc.weight": (width, 2 * width),
            **{
                f"mtp.{name}.weight": (width,)
                for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
            },
            **_layer("mtp.layers.0.", text, Form(one_by_one=True), linear=False),
        }
    return shapes | _vision(config["vision_config"])


def _linear_layers(text: Config) -> list[bool]:
    if text.get("layer_types"):
        return [kind == "linear_attention" for kind in text["layer_types"]]
    interval = text.get("full_attention_interval", 1)
    return [bool((layer + 1) % interval) for layer in range(text["num_hidden_layers"])]


def _layer(prefix: str, text: Config, form: Form, *, linear: bool) -> Shapes:
    width, head = text["hidden_size"], text["head_dim"]
    n_query, n_key = (text[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    gated = 2 if "linear_num_key_heads" in text else 1
    attention: Shapes = {
        "self_attn.q_proj.weight": (gated * n_query, width),
        "self_attn.k_proj.weight": (n_key, width),
        "self_attn.v_proj.weight": (n_key, width),
        "self_attn.o_proj.weight": (width, n_query),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
    }
    shapes: Shapes = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        **(_delta_net(text) if linear else attention),
        **(_experts(text, form) if "num_experts_per_tok" in text else _gated(text, "mlp.")),
    }
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def _delta_net(text: Config) -> Shapes:
    width, n_heads = text["hidden_size"], text["linear_num_value_heads"]
    n_key = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    n_value = n_heads * text["linear_value_head_dim"]
    shapes: Shapes = {
        "A_log": (n_heads,),
        "conv1d.weight": (2 * n_key + n_value, 1, text["linear_conv_kernel_dim"]),
        "dt_bias": (n_heads,),
        "in_proj_a.weight": (n_heads, width),
        "in_proj_b.weight": (n_heads, width),
        "in_proj_qkv.weight": (2 * n_key + n_value, width),
        "in_proj_z.weight": (n_value, width),
        "norm.weight": (text["linear_value_head_dim"],),
        "out_proj.weight": (width, n_value),
    }
    return {f"linear_attn.{name}": shape for name, shape in shapes.items()}


def _gated(text: Config, prefix: str, *, inner: str = "intermediate_size") -> Shapes:
    width, n_ff = text["hidden_size"], text[inner]
    return {
        f"{prefix}gate_proj.weight": (n_ff, width),
        f"{prefix}up_proj.weight": (n_ff, width),
        f"{prefix}down_proj.weight": (width, n_ff),
    }


def _experts(text: Config, form: Form) -> Shapes:
    # transformers writes either name for the same number.
    n: int = text["num_local_experts" if "num_local_experts" in text else "num_experts"]
    width, n_ff = text["hidden_size"], text["moe_intermediate_size"]
    shapes: Shapes = {"mlp.gate.weight": (n, width)}
    if form.one_by_one:
        for number in range(n):
            shapes |= _gated(text, f"mlp.experts.{number}.", inner="moe_intermediate_size")
    else:
        for name, shape in (("gate_up_proj", (2 * n_ff, width)), ("down_proj", (width, n_ff))):
            shapes[f"mlp.experts.{name}"] = (n, *(shape[::-1] if form.transposed else shape))
    if "shared_expert_intermediate_size" in text:
        inner = "shared_expert_intermediate_size"
        shapes |= {
            **_gated(text, "mlp.shared_expert.", inner=inner),
            "mlp.shared_expert_gate.weight": (1, width),
        }
    return shapes


def _vision(vision: Config) -> Shapes:
    width, inner, n_out = (
        vision[key] for key in ("hidden_size", "intermediate_size", "out_hidden_size")
    )
    patch = vision["patch_size"]
    matrices: Shapes = {"patch_embed.proj": (width, 3, 2, patch, patch)}
    norms: dict[str, int] = {}
    for block in range(vision["depth"]):
        prefix = f"blocks.{block}."
        norms |= {f"{prefix}norm1": width, f"{prefix}norm2": width}
        matrices |= {
            f"{prefix}attn.qkv": (3 * width, width),
            f"{prefix}attn.proj": (width, width),
            f"{prefix}mlp.linear_fc1": (inner, width),
            f"{prefix}mlp.linear_fc2": (width, inner),
        }
    n_deepstack = len(vision.get("deepstack_visual_indexes", []))
    mergers = ["merger.", *(f"deepstack_merger_list.{i}." for i in range(n_deepstack))]
    for prefix in mergers:
        norms[f"{prefix}norm"] = width if prefix == "merger." else 4 * width
        matrices[f"{prefix}linear_fc1"] = (4 * width, 4 * width)
        matrices[f"{prefix}linear_fc2"] = (n_out, 4 * width)
    shapes: Shapes = {"pos_embed.weight": (vision["num_position_embeddings"], width)}
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, size in norms.items():
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return {f"model.visual.{name}": shape for name, shape in shapes.items()}
