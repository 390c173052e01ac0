"""Qwen3: norms over each head, no biases. llama.cpp's `qwen3`, and `qwen3vl` inside Qwen3-VL.

Facts: names and shapes from llama.cpp src/models/qwen3.cpp and qwen3vl.cpp; keys from
conversion/qwen3vl.py; defaults from transformers' `Qwen3Config` and `Qwen3VLTextConfig`.
"""

from __future__ import annotations

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import array, u32
from edgevlm_convert.rules import Rule
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_metadata,
    head_norm_rules,
    mlp_rules,
    model_rules,
    norm_metadata,
    norm_rules,
    read_sizes,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.rope import PLAIN_KINDS, SHORT_KINDS, read_rope
from edgevlm_convert.towers.qwen3 import read_deepstack

_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
}
_VL_DEFAULTS = {**_DEFAULTS, "max_position_embeddings": 128000}
_VL_THETA = 500_000.0
_VL_SECTIONS = (24, 20, 20)


def check_qwen3(text: Section) -> None:
    """Refuse what the graph computes in one way only, when the config asks for another."""
    text.require("hidden_act", ("silu",), default="silu")
    text.require("attention_bias", (False,), default=False)
    text.require("use_sliding_window", (False,), default=False)


def layer_rules(source: Source, sizes: Sizes, layer: int) -> list[Rule]:
    """Return the rules of one layer without its feed-forward network."""
    names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
    return [
        *norm_rules(*names, sizes.n_embd),
        *attention_rules(*names, sizes),
        *head_norm_rules(*names, sizes.head_dim),
    ]


def _rules(source: Source, sizes: Sizes) -> tuple[Rule, ...]:
    rules = model_rules(source, sizes.n_embd)
    for layer in range(sizes.n_layers):
        rules += layer_rules(source, sizes, layer)
        rules += mlp_rules(
            f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}.", sizes.n_embd, sizes.n_ff
        )
    return tuple(rules)


def build_qwen3(source: Source) -> Part:
    """Return rules and metadata of a Qwen3 inside a VLM without features of its own."""
    text, name = source.text, QWEN3.name
    check_qwen3(text)
    sizes = read_sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=SHORT_KINDS)
    return Part(
        rules=_rules(source, sizes),
        metadata={
            **size_metadata(name, text, sizes, rope),
            **rope_base(name, rope),
            **norm_metadata(name, text),
            **head_metadata(name, text, sizes),
        },
    )


def build_qwen3_vl(source: Source) -> Part:
    """Return rules and metadata of the text model of a dense Qwen3-VL.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text, name = source.text, QWEN3_VL.name
    check_qwen3(text)
    sizes = read_sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=PLAIN_KINDS, default_theta=_VL_THETA)
    sections = read_sections(rope, default=_VL_SECTIONS, half=sizes.head_dim // 2, interleaved=True)
    return Part(
        rules=_rules(source, sizes),
        metadata={
            **size_metadata(name, text, sizes, rope),
            f"{name}.rope.dimension_sections": array("INT32", sections),
            **rope_base(name, rope),
            **norm_metadata(name, text),
            **head_metadata(name, text, sizes),
        },
        late_metadata={f"{name}.n_deepstack_layers": u32(len(read_deepstack(source)))},
    )


QWEN3 = TextArchitecture(
    name="qwen3", model_types=("qwen3",), defaults=_DEFAULTS, build=build_qwen3
)
QWEN3_VL = TextArchitecture(
    name="qwen3vl",
    model_types=("qwen3_vl_text",),
    defaults=_VL_DEFAULTS,
    build=build_qwen3_vl,
)
