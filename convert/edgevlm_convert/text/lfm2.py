"""LFM2: gated short convolutions, and a few layers of attention. llama.cpp's `lfm2`.

Facts: names and shapes from llama.cpp src/models/lfm2.cpp; keys from conversion/lfm2.py; defaults,
and how the feed-forward width is worked out, from transformers' `Lfm2Config` and `Lfm2MLP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevlm_convert.config import MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import array, f32, u32
from edgevlm_convert.rules import Rename, Rule, Shape
from edgevlm_convert.shape_rules import Reshaped
from edgevlm_convert.text.decoder import (
    Sizes,
    head_metadata,
    matrices,
    model_rules,
    read_sizes,
    require_usual_heads,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.rope import PLAIN_KINDS, read_rope

_DEFAULTS = {
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "vocab_size": 65536,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_auto_adjust_ff_dim": True,
}
_THETA = 1_000_000.0
_CONV, _ATTENTION = "conv", "full_attention"
_MAX_KERNEL = 64


def build_lfm2(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    source = replace(source, config=_with_tie(source.config), text=_with_tie(source.text))
    text, name = source.text, LFM2.name
    text.require("conv_bias", (False,), default=False)
    sizes = replace(read_sizes(text), n_ff=_feed_forward_width(text))
    require_usual_heads(text, sizes)
    has_attention = _attention_layers(text, sizes.n_layers)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=PLAIN_KINDS, default_theta=_THETA)
    # Of one value nothing would be kept between two tokens, which the graph asserts.
    kernel = text.integer("conv_L_cache", low=2, high=_MAX_KERNEL)
    return Part(
        rules=_rules(source, sizes, kernel, has_attention),
        metadata={
            **size_metadata(name, text, sizes, rope),
            # A layer without heads is one of convolution.
            f"{name}.attention.head_count_kv": array(
                "INT32", [sizes.n_head_kv if attention else 0 for attention in has_attention]
            ),
            **rope_base(name, rope),
            f"{name}.attention.layer_norm_rms_epsilon": f32(
                text.number("norm_eps", low=1e-12, high=1.0)
            ),
            **head_metadata(name, text, sizes),
        },
        late_metadata={
            f"{name}.vocab_size": u32(source.n_vocab),
            f"{name}.shortconv.l_cache": u32(kernel),
        },
    )


def _with_tie(section: Section) -> Section:
    """Return a section with the name that transformers has for `tie_embedding`, which wins."""
    old, new = "tie_embedding", "tie_word_embeddings"
    if not section.has(old):
        return section
    tied = section.boolean(old, default=True)
    section.require(new, (tied,), default=tied)
    return section.with_defaults({new: tied})


def _feed_forward_width(text: Section) -> int:
    """Return the width of the matrices; the configuration may give the one before rounding."""
    key = "block_ff_dim" if text.has("block_ff_dim") else "intermediate_size"
    width = text.integer(key, low=1, high=MAX_WIDTH)
    if not text.boolean("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    width = int(text.number("block_ffn_dim_multiplier", low=1e-3, high=1e3, default=1.0) * width)
    step = text.integer("block_multiple_of", low=1, high=MAX_WIDTH)
    width = -(-width // step) * step
    if not 1 <= width <= MAX_WIDTH:
        text.fail(key, f"a width that becomes one from 1 to {MAX_WIDTH}, not {width}")
    return width


def _attention_layers(text: Section, n_layers: int) -> list[bool]:
    """Return which layers have attention.

    Raises:
        CheckpointError: of another kind, of another number of layers, or all of them or none: for
            one kind alone llama.cpp's memory has an assertion that ends the process.
    """
    if text.has("layer_types"):
        key, kinds = "layer_types", text.texts("layer_types")
        if len(kinds) != n_layers or set(kinds) - {_CONV, _ATTENTION}:
            text.fail(key, f"{_CONV} or {_ATTENTION} for each of {n_layers} layers")
        found = [kind == _ATTENTION for kind in kinds]
    else:
        key = "full_attn_idxs"
        layers = text.integers(key, low=0, high=n_layers - 1, max_length=MAX_LAYERS)
        found = [layer in layers for layer in range(n_layers)]
    if all(found) or not any(found):
        text.fail(key, "layers of both kinds: llama.cpp computes no others")
    return found


def _rules(
    source: Source, sizes: Sizes, kernel: int, has_attention: Sequence[bool]
) -> tuple[Rule, ...]:
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    rules = model_rules(
        source, n_embd, tied_by_default=True, last_norm=("embedding_norm", "token_embd_norm")
    )
    shared: dict[str, tuple[str, Shape]] = {
        "operator_norm.weight": ("attn_norm.weight", (n_embd,)),
        "ffn_norm.weight": ("ffn_norm.weight", (n_embd,)),
        "feed_forward.w1.weight": ("ffn_gate.weight", (n_ff, n_embd)),
        "feed_forward.w3.weight": ("ffn_up.weight", (n_ff, n_embd)),
        "feed_forward.w2.weight": ("ffn_down.weight", (n_embd, n_ff)),
    }
    for layer, attention in enumerate(has_attention):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += matrices(*names, shared)
        rules += (
            _attention_rules(*names, sizes) if attention else _conv_rules(*names, sizes, kernel)
        )
    return tuple(rules)


def _attention_rules(source: str, target: str, sizes: Sizes) -> list[Rule]:
    n_embd, head_dim = sizes.n_embd, sizes.head_dim
    shapes: dict[str, tuple[str, Shape]] = {
        "q_proj.weight": ("attn_q.weight", (sizes.n_query, n_embd)),
        "k_proj.weight": ("attn_k.weight", (sizes.n_key, n_embd)),
        "v_proj.weight": ("attn_v.weight", (sizes.n_key, n_embd)),
        "out_proj.weight": ("attn_output.weight", (n_embd, sizes.n_query)),
        "q_layernorm.weight": ("attn_q_norm.weight", (head_dim,)),
        "k_layernorm.weight": ("attn_k_norm.weight", (head_dim,)),
    }
    return matrices(f"{source}self_attn.", target, shapes)


def _conv_rules(source: str, target: str, sizes: Sizes, kernel: int) -> list[Rule]:
    """Return the rules of a convolution along the sequence, each channel by itself."""
    source, target, n_embd = f"{source}conv.", f"{target}shortconv.", sizes.n_embd
    convolution = Rename(
        source=f"{source}conv.weight",
        target=f"{target}conv.weight",
        shape=(n_embd, 1, kernel),
        precision="f32",
    )
    shapes: dict[str, tuple[str, Shape]] = {
        "in_proj.weight": ("in_proj.weight", (3 * n_embd, n_embd)),
        "out_proj.weight": ("out_proj.weight", (n_embd, n_embd)),
    }
    return [
        Reshaped(rule=convolution, shape=(n_embd, kernel)),
        *matrices(source, target, shapes),
    ]


LFM2 = TextArchitecture(name="lfm2", model_types=("lfm2",), defaults=_DEFAULTS, build=build_lfm2)
