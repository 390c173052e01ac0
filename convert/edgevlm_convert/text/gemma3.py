"""Gemma 3: four norms a layer, sliding windows, embeddings scaled. llama.cpp's `gemma3`.

Facts: names, shapes and what the graph computes from llama.cpp src/models/gemma3.cpp; keys and
their order from conversion/gemma.py; defaults from transformers' `Gemma3TextConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, f32, u32
from edgevlm_convert.rules import ReadRows, Rename, Rule, Transform
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_metadata,
    head_norm_rules,
    matrices,
    mlp_rules,
    model_rules,
    norm_metadata,
    read_sizes,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.rope import read_kind, read_rope_of
from edgevlm_convert.transforms import plus_one

_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262208,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Every sixth layer attends to everything, unless a file says otherwise.
_PATTERN = 6
# The graph takes a model with as many layers for the 27B, and scales its queries in another way.
_N_LAYERS_27B = 62
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def build_gemma3(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text, name = source.text, GEMMA3.name
    _check(text)
    sizes = read_sizes(text)
    if sizes.head_dim % 2:
        text.fail("head_dim", "an even number: rotary positions turn pairs of channels")
    rope = read_rope_of(
        _rope_section(text, _FULL),
        text,
        head_dim=sizes.head_dim,
        kinds=("linear",),
        default_theta=_THETA,
    )
    query_factor = _query_factor(text, sizes)
    rules = model_rules(source, sizes.n_embd, tied_by_default=True)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        shape = (sizes.n_embd,)
        norms = {f"{one}.weight": (f"{to}.weight", shape) for one, to in _NORMS.items()}
        rules += matrices(*names, norms)
        rules += attention_rules(*names, sizes)
        rules += head_norm_rules(*names, sizes.head_dim)
        rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff)
    return Part(
        rules=tuple(_norms_around_one(rules, query_factor)),
        metadata={
            **size_metadata(name, text, sizes, rope),
            **rope_base(name, rope),
            **_local_rope_base(name, text),
            **norm_metadata(name, text),
            **head_metadata(name, text, sizes),
        },
        late_metadata=_window_metadata(name, text, sizes),
    )


def _check(text: Section) -> None:
    """Refuse what the graph computes in one way only, when the config asks for another."""
    text.require("hidden_activation", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    text.require("attention_bias", (False,), default=False)
    text.require("use_bidirectional_attention", (False,), default=False)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        # transformers' class for images ignores both, llama.cpp the first: nobody has trained one.
        if text.has(key):
            text.fail(key, "null: Gemma 3 caps neither attention nor logits")


def _rope_section(text: Section, kind: str) -> Section:
    """Return the rotary settings of the layers of one kind.

    transformers 4 wrote `rope_scaling` for layers that attend to everything; 5 takes it still.
    """
    key = "rope_parameters"
    both = text.section(key) if text.has(key) else text.empty(key)
    for flat in ("rope_type", "rope_theta", "factor"):
        if both.has(flat):
            both.fail(flat, f"no such key here, but a section {_FULL} and one {_SLIDING}")
    rope = both.section(kind) if both.has(kind) else both.empty(kind)
    if kind == _FULL and text.has("rope_scaling"):
        return text.section("rope_scaling").over(rope)
    return rope


def _local_rope_base(name: str, text: Section) -> dict[str, Value]:
    """Return the key of the rotary base of sliding layers, which the graph never scales."""
    rope = _rope_section(text, _SLIDING)
    read_kind(rope, ())
    rope.require("partial_rotary_factor", (1.0, 1), default=1.0)
    given, key = (rope, "rope_theta") if rope.has("rope_theta") else (text, "rope_local_base_freq")
    theta = given.number(key, low=1.0, high=1e12, default=_LOCAL_THETA)
    return {f"{name}.rope.freq_base_swa": f32(theta)}


def _window_metadata(name: str, text: Section, sizes: Sizes) -> dict[str, Value]:
    """Return the keys of the sliding window; none when every layer attends to everything."""
    slides = _sliding_layers(text, sizes.n_layers)
    if not any(slides):
        return {}
    window = text.integer("sliding_window", low=1, high=1 << 31)
    values: dict[str, Value] = {f"{name}.attention.sliding_window": u32(window)}
    if slides != _pattern(_PATTERN, sizes.n_layers):
        values[f"{name}.attention.sliding_window_pattern"] = array("BOOL", slides)
    return values


def _sliding_layers(text: Section, n_layers: int) -> list[bool]:
    """Return which layers slide: `layer_types` of transformers 5, or the pattern that 4 wrote."""
    if not text.has("layer_types"):
        key = "sliding_window_pattern"
        key = key if text.has(key) else f"_{key}"
        every = text.integer(key, low=1, high=1 << 31, default=_PATTERN)
        return _pattern(every, n_layers)
    kinds = text.texts("layer_types")
    if len(kinds) != n_layers or not set(kinds) <= {_SLIDING, _FULL}:
        text.fail("layer_types", f"{n_layers} times {_SLIDING} or {_FULL}")
    return [kind == _SLIDING for kind in kinds]


def _pattern(every: int, n_layers: int) -> list[bool]:
    return [(layer + 1) % every != 0 for layer in range(n_layers)]


def _query_factor(text: Section, sizes: Sizes) -> float:
    """Return by what queries must grow to be scaled as the checkpoint says, 1 for published ones.

    The graph does not read `query_pre_attn_scalar`: it divides by the root of the head's channels,
    in a model of 62 layers by that of the channels that a head has of the residual stream.
    """
    wanted = text.number("query_pre_attn_scalar", low=1e-3, high=1e6)
    is_27b = sizes.n_layers == _N_LAYERS_27B
    computed = sizes.n_embd // sizes.n_head if is_27b else sizes.head_dim
    return math.sqrt(computed / wanted)


def _norms_around_one(rules: Sequence[Rule], query_factor: float) -> list[Rule]:
    """Return the rules with 1 added to every norm; those of queries carry `query_factor` too."""
    changed: list[Rule] = []
    for rule in rules:
        if isinstance(rule, Rename) and rule.target.endswith("norm.weight"):
            is_query = rule.target.endswith("attn_q_norm.weight") and query_factor != 1
            rows = partial(_scaled_plus_one, factor=query_factor) if is_query else plus_one
            rule = Transform(source=rule.source, target=rule.target, shape=rule.shape, rows=rows)
        changed.append(rule)
    return changed


def _scaled_plus_one(
    read: ReadRows, start: int, stop: int, *, factor: float
) -> NDArray[np.float32]:
    return plus_one(read, start, stop) * np.float32(factor)


GEMMA3 = TextArchitecture(
    name="gemma3", model_types=("gemma3_text",), defaults=_DEFAULTS, build=build_gemma3
)
