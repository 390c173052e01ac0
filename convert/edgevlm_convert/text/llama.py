"""Llama, and what shares its graph: SmolLM2, Mistral, Vicuna. llama.cpp's `llama`.

Facts: names and shapes from llama.cpp src/models/llama.cpp; keys from conversion/llama.py; defaults
from transformers' `LlamaConfig` and `MistralConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import u32
from edgevlm_convert.rules import Rename, Rule, Transform
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_metadata,
    mlp_rules,
    model_rules,
    norm_metadata,
    norm_rules,
    read_sizes,
    rope_base,
    rope_tensors,
    size_metadata,
)
from edgevlm_convert.text.rope import ALL_KINDS, Rope, read_rope
from edgevlm_convert.transforms import paired_bias, paired_halves

_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
MISTRAL_DEFAULTS = {
    **_DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}


def build_llama(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    sizes = read_llama_sizes(source.text)
    rope = read_rope(source.text, head_dim=sizes.head_dim, kinds=ALL_KINDS)
    return build_like_llama(source, LLAMA.name, sizes, rope)


def read_llama_sizes(text: Section) -> Sizes:
    """Return the sizes, after refusing what the graph computes in one way only."""
    text.require("hidden_act", ("silu",), default="silu")
    text.require("pretraining_tp", (1,), default=1)
    sizes = read_sizes(text)
    if sizes.head_dim % 2:
        text.fail("head_dim", "an even number: rotary positions turn pairs of channels")
    return sizes


def build_like_llama(
    source: Source, name: str, sizes: Sizes, rope: Rope, *, tied_by_default: bool = False
) -> Part:
    """Return rules and metadata of an architecture with Llama's tensors.

    Args:
        source: the checkpoint's configuration.
        name: llama.cpp's name of the architecture.
        sizes: of the text model.
        rope: its rotary settings.
        tied_by_default: whether a configuration that does not say means a tied output.
    """
    text = source.text
    attention_bias = text.boolean("attention_bias", default=False)
    mlp_bias = text.boolean("mlp_bias", default=False)
    rules = model_rules(source, sizes.n_embd, tied_by_default=tied_by_default)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += norm_rules(*names, sizes.n_embd)
        attention = attention_rules(
            *names, sizes, qkv_bias=attention_bias, output_bias=attention_bias
        )
        rules += attention if source.rows_are_paired else _paired(attention, sizes)
        rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff, bias=mlp_bias)
    return Part(
        rules=tuple(rules),
        computed=rope_tensors(rope),
        metadata={
            **size_metadata(name, text, sizes, rope),
            **rope_base(name, rope),
            **norm_metadata(name, text),
            # The classes work out a head's channels, and llama.cpp's converter asks them.
            **head_metadata(name, text.with_defaults({"head_dim": sizes.head_dim}), sizes),
        },
        late_metadata={
            f"{name}.vocab_size": u32(source.n_vocab),
            f"{name}.rope.dimension_count": u32(sizes.head_dim),
        },
        losses=(*rope.losses, *_window_losses(source)),
    )


def _paired(rules: Sequence[Rule], sizes: Sizes) -> list[Rule]:
    """Return the rules with query and key rows in the order that this graph rotates."""
    heads = {"attn_q.": sizes.n_head, "attn_k.": sizes.n_head_kv}
    changed: list[Rule] = []
    for rule in rules:
        n_head = 0
        if isinstance(rule, Rename):
            n_head = next((n for key, n in heads.items() if key in rule.target), 0)
        if isinstance(rule, Rename) and n_head:
            paired = paired_bias if len(rule.shape) == 1 else paired_halves
            changed.append(
                Transform(
                    source=rule.source,
                    target=rule.target,
                    shape=rule.shape,
                    rows=paired(n_head, sizes.head_dim),
                )
            )
        else:
            changed.append(rule)
    return changed


def _window_losses(source: Source) -> tuple[str, ...]:
    """Say what a sliding window means here: the graph attends to everything before a token."""
    text, config = source.text, source.config
    given = config.section("text_config") if config.has("text_config") else config
    # null is no window; Mistral has one where the key is missing.
    names = given.keys()
    is_off = "sliding_window" in names and not given.has("sliding_window")
    if is_off or not text.has("sliding_window"):
        return ()
    window = text.integer("sliding_window", low=1, high=1 << 31)
    if window >= text.integer("max_position_embeddings", low=1, high=1 << 31):
        return ()
    return (
        f"sliding window: the model looks back {window} tokens, llama.cpp's graph of this"
        " architecture at all of them; a prompt up to that length is not affected",
    )


LLAMA = TextArchitecture(
    name="llama", model_types=("llama",), defaults=_DEFAULTS, build=build_llama
)
MISTRAL = TextArchitecture(
    name="llama", model_types=("mistral",), defaults=MISTRAL_DEFAULTS, build=build_llama
)
