"""Qwen2: biases on query, key and value. llama.cpp's `qwen2`, and `qwen2vl` inside Qwen2(.5)-VL.

Facts: names and shapes from llama.cpp src/models/qwen2.cpp and qwen2vl.cpp; keys from
conversion/qwen.py and qwenvl.py; defaults from transformers' `Qwen2Config`, `Qwen2VLTextConfig` and
`Qwen2_5_VLTextConfig`.
"""

from __future__ import annotations

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array
from edgevlm_convert.rules import Rule
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_metadata,
    mlp_rules,
    model_rules,
    norm_metadata,
    norm_rules,
    read_sizes,
    require_usual_heads,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.rope import PLAIN_KINDS, SHORT_KINDS, Rope, read_rope

_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_VL_DEFAULTS = {
    **_DEFAULTS,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 152064,
    "max_window_layers": 80,
}
_VL_THETA = 1_000_000.0
_VL_SECTIONS = (16, 24, 24)
_MAX_CONTEXT = 1 << 31


def build_qwen2(source: Source) -> Part:
    """Return rules and metadata of a Qwen2 inside a VLM without rotary sections.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text, name = source.text, QWEN2.name
    sizes = _sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=SHORT_KINDS)
    return Part(
        rules=_rules(source, sizes),
        metadata={
            **size_metadata(name, text, sizes, rope),
            **_tail(name, text, sizes, rope),
        },
    )


def build_qwen2_vl(source: Source) -> Part:
    """Return rules and metadata of the text model of Qwen2-VL and Qwen2.5-VL.

    Raises:
        CheckpointError: as `build_qwen2`.
    """
    text, name = source.text, QWEN2_VL.name
    sizes = _sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=PLAIN_KINDS, default_theta=_VL_THETA)
    sections = read_sections(
        rope, default=_VL_SECTIONS, half=sizes.head_dim // 2, interleaved=False
    )
    return Part(
        rules=_rules(source, sizes),
        metadata={
            **size_metadata(name, text, sizes, rope),
            f"{name}.rope.dimension_sections": array("INT32", sections),
            **_tail(name, text, sizes, rope),
        },
        losses=_norm_losses(source, name),
    )


def _norm_losses(source: Source, name: str) -> tuple[str, ...]:
    """Say what the pinned llama.cpp does: its loader reads no epsilon (src/models/qwen2vl.cpp)."""
    if source.reads_norm_epsilon(name):
        return ()
    epsilon = source.text.number("rms_norm_eps", low=1e-12, high=1.0)
    return (
        f"llama.cpp leaves the epsilon {epsilon:g} out of this text model's norms: answers shift a"
        " little, the more the smaller the token embeddings are",
    )


def _sizes(text: Section) -> Sizes:
    text.require("hidden_act", ("silu",), default="silu")
    sizes = read_sizes(text)
    require_usual_heads(text, sizes)
    if text.boolean("use_sliding_window", default=False) and _has_windows(text, sizes.n_layers):
        text.fail(
            "use_sliding_window", "false: llama.cpp attends to all tokens in this architecture"
        )
    return sizes


def _has_windows(text: Section, n_layers: int) -> bool:
    """Return whether a layer attends to less than the longest context."""
    longest = text.integer("max_position_embeddings", low=1, high=_MAX_CONTEXT)
    if text.integer("sliding_window", low=1, high=_MAX_CONTEXT) >= longest:
        return False
    if text.has("layer_types"):
        return "sliding_attention" in text.texts("layer_types")
    return text.integer("max_window_layers", low=0, high=_MAX_CONTEXT) < n_layers


def _tail(name: str, text: Section, sizes: Sizes, rope: Rope) -> dict[str, Value]:
    return {
        **rope_base(name, rope),
        **norm_metadata(name, text),
        **head_metadata(name, text, sizes),
    }


def _rules(source: Source, sizes: Sizes) -> tuple[Rule, ...]:
    rules = model_rules(source, sizes.n_embd)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += norm_rules(*names, sizes.n_embd)
        rules += attention_rules(*names, sizes, qkv_bias=True)
        rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff)
    return tuple(rules)


QWEN2 = TextArchitecture(
    name="qwen2", model_types=("qwen2",), defaults=_DEFAULTS, build=build_qwen2
)
QWEN2_VL = TextArchitecture(
    name="qwen2vl",
    model_types=("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl"),
    defaults=_VL_DEFAULTS,
    build=build_qwen2_vl,
)
