"""GLM-4.5 inside GLM-4.5V and GLM-4.6V: experts behind a first dense layer. llama.cpp's `glm4moe`.

Facts: names, shapes and what the graph computes from llama.cpp src/models/glm4-moe.cpp; keys from
conversion/glm.py (`Glm4MoeModel`) and conversion/base.py; defaults from transformers'
`Glm4vMoeTextConfig`, how experts are chosen from its modeling_glm4v_moe.py.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, boolean, f32, u32
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_metadata,
    matrices,
    mlp_rules,
    model_rules,
    norm_metadata,
    read_sizes,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.experts import MAX_EXPERTS, Experts, count_metadata, routed_rules
from edgevlm_convert.text.glm4 import SECTIONS, end_of_turn, predictor_rules
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.rope import PLAIN_KINDS, read_n_rotated, read_rope

_NAME = "glm4moe"
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "vocab_size": 151424,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
}
_ROTARY_FACTOR = 0.5
# LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID (src/llama-hparams.h).
_SIGMOID = 2


def build_glm4v_moe_text(source: Source) -> Part:
    """Return rules and metadata of the text model of GLM-4.5V.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = source.text
    text.require("hidden_act", ("silu",), default="silu")
    sizes = read_sizes(text)
    experts = _read_experts(text)
    n_dense = text.integer("first_k_dense_replace", low=0, high=sizes.n_layers - 1)
    n_rotated = read_n_rotated(text, head_dim=sizes.head_dim, default=_ROTARY_FACTOR)
    rope = read_rope(text, head_dim=n_rotated, kinds=PLAIN_KINDS, partial=True)
    sections = read_sections(rope, default=SECTIONS, half=n_rotated // 2, interleaved=False)
    bias = text.boolean("attention_bias", default=True)
    rules = model_rules(source, sizes.n_embd)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += _norm_rules(*names, sizes.n_embd)
        rules += attention_rules(*names, sizes, qkv_bias=bias)
        if layer < n_dense:
            rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff)
        else:
            rules += _mixture_rules(source, *names, sizes, experts)
    return Part(
        rules=(*rules, *predictor_rules(source, sizes.n_layers)),
        metadata={
            **size_metadata(_NAME, text, sizes, rope),
            f"{_NAME}.rope.dimension_sections": array("INT32", sections),
            **rope_base(_NAME, rope),
            **norm_metadata(_NAME, text),
            **count_metadata(_NAME, experts),
            **_group_metadata(text),
            **head_metadata(_NAME, text, sizes),
        },
        late_metadata={
            f"{_NAME}.rope.dimension_count": u32(n_rotated),
            **_mixture_metadata(text, experts, n_dense),
            **end_of_turn(source),
        },
    )


def _read_experts(text: Section) -> Experts:
    # transformers writes either name for the same number.
    key = "num_local_experts" if text.has("num_local_experts") else "n_routed_experts"
    n_experts = text.integer(key, low=2, high=MAX_EXPERTS)
    n_ff = text.integer("moe_intermediate_size", low=1, high=MAX_WIDTH)
    return Experts(
        n_experts=n_experts,
        n_used=text.integer("num_experts_per_tok", low=1, high=n_experts),
        n_ff=n_ff,
        n_ff_shared=n_ff * text.integer("n_shared_experts", low=1, high=MAX_WIDTH // n_ff),
    )


def _group_metadata(text: Section) -> dict[str, Value]:
    """Return the keys of groups of experts, which llama.cpp's converter copies."""
    keys = {"n_group": "expert_group_count", "topk_group": "expert_group_used_count"}
    for key in keys:
        text.require(key, (1,), default=1)
    return {f"{_NAME}.{to}": u32(1) for key, to in keys.items() if text.has(key)}


def _mixture_metadata(text: Section, experts: Experts, n_dense: int) -> dict[str, Value]:
    scale = text.number("routed_scaling_factor", low=1e-3, high=1e3)
    return {
        f"{_NAME}.expert_feed_forward_length": u32(experts.n_ff),
        f"{_NAME}.expert_shared_count": u32(experts.n_ff_shared // experts.n_ff),
        f"{_NAME}.leading_dense_block_count": u32(n_dense),
        f"{_NAME}.expert_gating_func": u32(_SIGMOID),
        f"{_NAME}.expert_weights_scale": f32(scale),
        f"{_NAME}.expert_weights_norm": boolean(text.boolean("norm_topk_prob", default=True)),
    }


def _norm_rules(source: str, target: str, n_embd: int) -> list[Rule]:
    return matrices(
        source,
        target,
        {
            "input_layernorm.weight": ("attn_norm.weight", (n_embd,)),
            "post_attention_layernorm.weight": ("post_attention_norm.weight", (n_embd,)),
        },
    )


def _mixture_rules(
    source: Source, prefix: str, target: str, sizes: Sizes, experts: Experts
) -> list[Rule]:
    mlp, n_embd, n_shared = f"{prefix}mlp.", sizes.n_embd, experts.n_ff_shared
    return [
        Rename(
            source=f"{mlp}gate.weight",
            target=f"{target}ffn_gate_inp.weight",
            shape=(experts.n_experts, n_embd),
            # The router's scores decide; llama.cpp keeps them exact.
            precision="f32",
        ),
        *matrices(
            mlp,
            target,
            {
                "gate.e_score_correction_bias": ("exp_probs_b.bias", (experts.n_experts,)),
                "shared_experts.gate_proj.weight": ("ffn_gate_shexp.weight", (n_shared, n_embd)),
                "shared_experts.up_proj.weight": ("ffn_up_shexp.weight", (n_shared, n_embd)),
                "shared_experts.down_proj.weight": ("ffn_down_shexp.weight", (n_embd, n_shared)),
            },
        ),
        *routed_rules(source, f"{mlp}experts.", target, n_embd, experts),
    ]


GLM4V_MOE_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("glm4v_moe_text",),
    defaults=_DEFAULTS,
    build=build_glm4v_moe_text,
)
