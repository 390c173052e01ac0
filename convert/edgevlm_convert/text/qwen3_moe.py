"""Qwen3 with experts: llama.cpp's `qwen3moe`, and `qwen3vlmoe` inside Qwen3-VL.

Facts: names and shapes from llama.cpp src/models/qwen3moe.cpp and qwen3vlmoe.cpp; keys from
conversion/qwen.py and qwen3vl.py; defaults from transformers' `Qwen3MoeConfig` and
`Qwen3VLMoeTextConfig`.
"""

from __future__ import annotations

from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, u32
from edgevlm_convert.rules import Rule
from edgevlm_convert.text.decoder import (
    Sizes,
    head_metadata,
    model_rules,
    norm_metadata,
    read_sizes,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.experts import (
    Experts,
    count_metadata,
    expert_rules,
    read_experts,
    width_metadata,
)
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.qwen3 import check_qwen3, layer_rules
from edgevlm_convert.text.rope import PLAIN_KINDS, SHORT_KINDS, Rope, read_rope
from edgevlm_convert.towers.qwen3 import read_deepstack

_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
_VL_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "moe_intermediate_size": 1408,
    "num_experts": 60,
    "num_experts_per_tok": 4,
}
_VL_THETA = 500_000.0
_VL_SECTIONS = (24, 20, 20)


def build_qwen3_moe(source: Source) -> Part:
    """Return rules and metadata of a Qwen3 with experts inside a VLM.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = source.text
    check_qwen3(text)
    # Qwen3-VL's class normalizes the weights of a token's experts whatever its config says.
    text.require("norm_topk_prob", (True,), default=False)
    sizes = read_sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=SHORT_KINDS)
    return _part(source, QWEN3_MOE.name, sizes, rope, sections={})


def build_qwen3_vl_moe(source: Source) -> Part:
    """Return rules and metadata of the text model of Qwen3-VL's MoE class.

    Raises:
        CheckpointError: as `build_qwen3_moe`.
    """
    return build_with_sections(source, default_theta=_VL_THETA)


def build_with_sections(source: Source, *, default_theta: float) -> Part:
    """Return rules and metadata of a text model with rotary sections and deepstack.

    Args:
        source: of the model.
        default_theta: rotary base of the transformers class.

    Raises:
        CheckpointError: as `build_qwen3_moe`.
    """
    text, name = source.text, QWEN3_VL_MOE.name
    check_qwen3(text)
    sizes = read_sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=PLAIN_KINDS, default_theta=default_theta)
    sections = read_sections(rope, default=_VL_SECTIONS, half=sizes.head_dim // 2, interleaved=True)
    part = _part(
        source,
        name,
        sizes,
        rope,
        sections={f"{name}.rope.dimension_sections": array("INT32", sections)},
    )
    deepstack = {f"{name}.n_deepstack_layers": u32(len(read_deepstack(source)))}
    return Part(
        rules=part.rules,
        metadata=part.metadata,
        late_metadata={**part.late_metadata, **deepstack},
    )


def _part(
    source: Source, name: str, sizes: Sizes, rope: Rope, *, sections: dict[str, Value]
) -> Part:
    text = source.text
    experts = read_experts(text)
    return Part(
        rules=_rules(source, sizes, experts),
        metadata={
            **size_metadata(name, text, sizes, rope),
            **sections,
            **rope_base(name, rope),
            **norm_metadata(name, text),
            **count_metadata(name, experts),
            **head_metadata(name, text, sizes),
        },
        late_metadata=width_metadata(name, experts),
    )


def _rules(source: Source, sizes: Sizes, experts: Experts) -> tuple[Rule, ...]:
    rules = model_rules(source, sizes.n_embd)
    for layer in range(sizes.n_layers):
        rules += layer_rules(source, sizes, layer)
        rules += expert_rules(
            source,
            f"{source.prefixes.text}layers.{layer}.",
            f"blk.{layer}.",
            sizes.n_embd,
            experts,
        )
    return tuple(rules)


QWEN3_MOE = TextArchitecture(
    name="qwen3moe", model_types=("qwen3_moe",), defaults=_DEFAULTS, build=build_qwen3_moe
)
QWEN3_VL_MOE = TextArchitecture(
    name="qwen3vlmoe",
    model_types=("qwen3_vl_moe_text",),
    defaults=_VL_DEFAULTS,
    build=build_qwen3_vl_moe,
)
