"""Hunyuan's dense model inside HunYuanVL: four rotary positions a token. llama.cpp's `hunyuan_vl`.

Facts: names, shapes and what the graph computes from llama.cpp src/models/hunyuan-vl.cpp; keys from
conversion/hunyuan.py (`HunyuanVLTextModel`); defaults and both spellings of the rotary settings
from transformers' `HunYuanVLTextConfig`. Published configurations have these keys at the root.
"""

from __future__ import annotations

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import array, f32, string, u32
from edgevlm_convert.rules import Rule
from edgevlm_convert.text.decoder import (
    attention_rules,
    head_metadata,
    matrices,
    mlp_rules,
    model_rules,
    norm_metadata,
    norm_rules,
    read_sizes,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.rope import Rope, read_theta, rope_section

_NAME = "hunyuan_vl"
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "vocab_size": 290943,
}
_THETA = 10_000.0
# The second is transformers' own name for it.
_KINDS = ("xdrope", "dynamic")
_N_POSITIONS = 4


def build_hunyuan_vl(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = _with_usual_names(source.text)
    text.require("hidden_act", ("silu",), default="silu")
    text.require("pretraining_tp", (1,), default=1)
    text.require("num_experts", (1,), default=1)
    text.require("use_qk_norm", (True,), default=True)
    for key in ("attention_bias", "mlp_bias", "use_cla"):
        text.require(key, (False,), default=False)
    sizes = read_sizes(text)
    if sizes.head_dim % 2:
        text.fail("head_dim", "an even number: rotary positions turn pairs of channels")
    settings = rope_section(text)
    alpha = _read_alpha(settings)
    rope = Rope(section=settings, theta=read_theta(settings, text, default=_THETA))
    sections = _read_sections(settings, sizes.head_dim // 2)
    rules: list[Rule] = model_rules(source, sizes.n_embd, tied_by_default=True)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += norm_rules(*names, sizes.n_embd)
        rules += attention_rules(*names, sizes)
        rules += matrices(
            f"{names[0]}self_attn.",
            names[1],
            {
                "query_layernorm.weight": ("attn_q_norm.weight", (sizes.head_dim,)),
                "key_layernorm.weight": ("attn_k_norm.weight", (sizes.head_dim,)),
            },
        )
        rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff)
    n_ctx = text.integer("max_position_embeddings", low=1, high=1 << 31)
    return Part(
        rules=tuple(rules),
        metadata={
            **size_metadata(_NAME, text, sizes, rope),
            f"{_NAME}.rope.dimension_sections": array("INT32", sections),
            **rope_base(_NAME, rope),
            **norm_metadata(_NAME, text),
            **head_metadata(_NAME, text, sizes),
        },
        late_metadata={
            f"{_NAME}.rope.scaling.type": string("none"),
            f"{_NAME}.rope.scaling.factor": f32(1.0),
            f"{_NAME}.rope.scaling.alpha": f32(alpha),
            f"{_NAME}.rope.scaling.original_context_length": u32(n_ctx),
        },
    )


def _with_usual_names(text: Section) -> Section:
    """Return the section with a head's channels under their usual name."""
    other = "attention_head_dim"
    return text.with_defaults({"head_dim": text.raw(other)}) if text.has(other) else text


def _read_alpha(rope: Section) -> float:
    """Return by what the rotary base is stretched, alpha ^ (d / (d - 2)) of a head's channels.

    Raises:
        CheckpointError: another kind of scaling.
    """
    key = "rope_type" if rope.has("rope_type") else "type"
    rope.require(key, _KINDS, default="")
    rope.require("factor", (1.0, 1), default=1.0)
    return rope.number("alpha", low=1e-3, high=1e9)


def _read_sections(rope: Section, half: int) -> list[int]:
    key = "mrope_section" if rope.has("mrope_section") else "xdrope_section"
    sections = rope.integers(key, low=1, high=4096, max_length=_N_POSITIONS)
    if len(sections) != _N_POSITIONS or sum(sections) != half:
        rope.fail(key, f"four numbers with the sum {half}, half a head")
    return sections


HUNYUAN_VL_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("hunyuan_vl_text", "hunyuan_vl"),
    defaults=_DEFAULTS,
    build=build_hunyuan_vl,
)
