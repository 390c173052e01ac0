"""Gemma 4: two kinds of heads, keys shared by the last layers, embeddings of every layer.

llama.cpp's `gemma4`. Facts: names, shapes and what the graph computes from src/models/gemma4.cpp;
which keys shared layers read from src/llama-model.cpp (`layer_reuse_cb`); keys and their order from
conversion/gemma.py; defaults from transformers' `Gemma4TextConfig`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm_convert.config import MAX_HEADS, MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, f32, u32
from edgevlm_convert.rules import Drop, Mapped, Rename, Rule, computed
from edgevlm_convert.text.decoder import (
    Sizes,
    matrices,
    mlp_rules,
    model_rules,
    norm_metadata,
    read_sizes,
)
from edgevlm_convert.text.experts import MAX_EXPERTS, Experts, count_metadata

_NAME = "gemma4"
_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "sliding_window": 512,
    "num_kv_shared_layers": 0,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_PATTERN, _FULL_HEAD = 6, 512
_THETA, _LOCAL_THETA, _ROTATED = 1_000_000.0, 10_000.0, 0.25
# A factor of channels that are not rotated: their angle is 0.
_STILL = 1e30
# Widths of E2B and E4B: libmtmd lets their visual tokens look back only (tools/mtmd/mtmd.cpp).
CAUSAL_WIDTHS = (1536, 2560)
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERT_NORMS = {
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What differs from layer to layer.

    Attributes:
        slides: which layers have a window.
        full_head: channels of a head in the others.
        full_kv: their key heads.
        n_own: layers that make keys of their own; those behind them read the last ones'.
        is_wide: layers without keys are twice as wide inside.
        keys_are_values: layers without a window have no matrix for values.
        n_inner: channels of a layer's own embedding, 0 for none.
        experts: a mixture beside the feed-forward network; None: there is none.
    """

    slides: Sequence[bool]
    full_head: int
    full_kv: int
    n_own: int
    is_wide: bool
    keys_are_values: bool
    n_inner: int
    experts: Experts | None

    def head(self, layer: int, sizes: Sizes) -> int:
        """Channels of a head."""
        return sizes.head_dim if self.slides[layer] else self.full_head

    def n_kv(self, layer: int, sizes: Sizes) -> int:
        """Key heads."""
        return sizes.n_head_kv if self.slides[layer] else self.full_kv

    def n_ff(self, layer: int, sizes: Sizes) -> int:
        """Channels inside the feed-forward network."""
        return sizes.n_ff * (2 if self.is_wide and layer >= self.n_own else 1)


def build_gemma4(source: Source, *, causal_widths: Collection[int] = CAUSAL_WIDTHS) -> Part:
    """Return rules and metadata of the text model.

    Args:
        source: what it is built from.
        causal_widths: those with which libmtmd lets visual tokens look back only.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = source.text
    sizes = read_sizes(text)
    _check(text, sizes, causal_widths)
    layout = _read_layout(text, sizes)
    rules = model_rules(source, sizes.n_embd, tied_by_default=True)
    rules += _inner_rules(source, sizes, layout)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += _layer_rules(*names, layer, sizes, layout)
    return Part(
        rules=tuple(rules),
        metadata=_metadata(text, sizes, layout),
        late_metadata=_late_metadata(text, sizes, layout),
        computed=_rotary_factors(text, layout),
    )


def _check(text: Section, sizes: Sizes, causal_widths: Collection[int]) -> None:
    """Refuse what the graph computes in one way only, when the config asks for another."""
    text.require("hidden_activation", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    text.require("attention_bias", (False,), default=False)
    # Visual tokens have no token of their own there: llama.cpp takes row 0.
    text.require("pad_token_id", (0,), default=0)
    both_ways = text.text("use_bidirectional_attention", default="")
    wanted = "" if sizes.n_embd in causal_widths else "vision"
    if both_ways != wanted:
        how = '"vision"' if wanted else "null"
        text.fail(
            "use_bidirectional_attention",
            f"{how}: llama.cpp decides by the width of {sizes.n_embd} whether visual tokens see"
            " each other both ways",
        )
    if sizes.head_dim % 2:
        text.fail("head_dim", "an even number: rotary positions turn pairs of channels")


def _read_layout(text: Section, sizes: Sizes) -> _Layout:
    slides = _sliding_layers(text, sizes.n_layers)
    full_head, full_kv = _full_heads(text, sizes, slides)
    n_shared = text.integer("num_kv_shared_layers", low=0, high=sizes.n_layers)
    n_own = sizes.n_layers - n_shared
    if n_own < 2 or (n_shared and list(slides[n_own - 2 : n_own]) != [True, False]):
        text.fail(
            "num_kv_shared_layers",
            "as many that the layers before them end with a sliding one and a full one, whose keys"
            " llama.cpp shares",
        )
    return _Layout(
        slides=slides,
        full_head=full_head,
        full_kv=full_kv,
        n_own=n_own,
        is_wide=text.boolean("use_double_wide_mlp", default=False),
        keys_are_values=text.boolean("attention_k_eq_v", default=False),
        n_inner=text.integer("hidden_size_per_layer_input", low=0, high=MAX_WIDTH),
        experts=_read_experts(text),
    )


def _read_experts(text: Section) -> Experts | None:
    if not text.boolean("enable_moe_block", default=False):
        return None
    n_experts = text.integer("num_experts", low=1, high=MAX_EXPERTS)
    return Experts(
        n_experts=n_experts,
        n_used=text.integer("top_k_experts", low=1, high=n_experts),
        n_ff=text.integer("moe_intermediate_size", low=1, high=MAX_WIDTH),
    )


def _sliding_layers(text: Section, n_layers: int) -> list[bool]:
    """Return which layers slide; transformers makes the last one full whatever a file says."""
    if not text.has("layer_types"):
        kinds = [_FULL if (layer + 1) % _PATTERN == 0 else _SLIDING for layer in range(n_layers)]
    else:
        kinds = text.texts("layer_types")
        if len(kinds) != n_layers or not set(kinds) <= {_SLIDING, _FULL}:
            text.fail("layer_types", f"{n_layers} times {_SLIDING} or {_FULL}")
    return [kind == _SLIDING for kind in kinds[:-1]] + [False]


def _full_heads(text: Section, sizes: Sizes, slides: Sequence[bool]) -> tuple[int, int]:
    """Return channels of a head and key heads of the layers without a window.

    transformers 5 saves them layer by layer, published files have one number each.
    """
    key = "per_layer_config"
    usual = text.integer("global_head_dim", low=2, high=4096, default=_FULL_HEAD)
    n_kv = sizes.n_head_kv
    if text.boolean("attention_k_eq_v", default=False):
        n_kv = text.integer("num_global_key_value_heads", low=1, high=MAX_HEADS, default=n_kv)
    found = {(usual, n_kv)}
    if text.has(key):
        layers = text.section(key)
        full = [str(layer) for layer, is_sliding in enumerate(slides) if not is_sliding]
        if set(layers.keys()) != set(full):
            text.fail(key, f"heads of the layers {', '.join(full)}, which have no window")
        found = {_own_heads(layers.section(layer), sizes) for layer in full}
    head, n_kv = sorted(found)[0]
    if len(found) > 1 or head % 2 or sizes.n_head % n_kv:
        text.fail(key if text.has(key) else "global_head_dim", "heads alike in all full layers")
    return head, n_kv


def _own_heads(layer: Section, sizes: Sizes) -> tuple[int, int]:
    for key in sorted(set(layer.keys()) - {"head_dim", "num_key_value_heads"}):
        layer.fail(key, "no such key here: llama.cpp's layers differ in their heads only")
    return (
        layer.integer("head_dim", low=2, high=4096, default=sizes.head_dim),
        layer.integer("num_key_value_heads", low=1, high=MAX_HEADS, default=sizes.n_head_kv),
    )


def _layer_rules(source: str, target: str, layer: int, sizes: Sizes, layout: _Layout) -> list[Rule]:
    n_embd, head = sizes.n_embd, layout.head(layer, sizes)
    norms = {**_NORMS, **(_EXPERT_NORMS if layout.experts else {})}
    shapes = {f"{one}.weight": (f"{to}.weight", (n_embd,)) for one, to in norms.items()}
    shapes |= {
        "layer_scalar": ("layer_output_scale.weight", (1,)),
        "self_attn.q_proj.weight": ("attn_q.weight", (sizes.n_head * head, n_embd)),
        "self_attn.o_proj.weight": ("attn_output.weight", (n_embd, sizes.n_head * head)),
        "self_attn.q_norm.weight": ("attn_q_norm.weight", (head,)),
    }
    if layout.n_inner:
        shapes |= {
            "per_layer_input_gate.weight": ("inp_gate.weight", (layout.n_inner, n_embd)),
            "per_layer_projection.weight": ("proj.weight", (n_embd, layout.n_inner)),
            "post_per_layer_input_norm.weight": ("post_norm.weight", (n_embd,)),
        }
    return [
        *matrices(source, target, shapes),
        *_key_rules(source, target, layer, sizes, layout),
        *mlp_rules(source, target, n_embd, layout.n_ff(layer, sizes)),
        *_expert_rules(source, target, n_embd, layout.experts),
    ]


def _key_rules(source: str, target: str, layer: int, sizes: Sizes, layout: _Layout) -> list[Rule]:
    """Return the rules of keys and values, which layers that share them may have all the same."""
    attention = f"{source}self_attn."
    if layer >= layout.n_own:
        reason = "this layer reads the keys and values of an earlier one"
        names = ("k_proj", "v_proj", "k_norm")
        return [Drop(source=f"{attention}{name}.weight", reason=reason) for name in names]
    head = layout.head(layer, sizes)
    width = layout.n_kv(layer, sizes) * head
    shapes = {
        "k_proj.weight": ("attn_k.weight", (width, sizes.n_embd)),
        "v_proj.weight": ("attn_v.weight", (width, sizes.n_embd)),
        "k_norm.weight": ("attn_k_norm.weight", (head,)),
    }
    if layout.keys_are_values and not layout.slides[layer]:
        del shapes["v_proj.weight"]
    return matrices(attention, target, shapes)


def _expert_rules(source: str, target: str, n_embd: int, experts: Experts | None) -> list[Rule]:
    """Return the rules of a mixture, whose gates and ups stay in one tensor."""
    if experts is None:
        return []
    n, n_ff = experts.n_experts, experts.n_ff
    router: Rule = Rename(
        source=f"{source}router.proj.weight",
        target=f"{target}ffn_gate_inp.weight",
        shape=(n, n_embd),
        # The router's logits decide; llama.cpp keeps them exact.
        precision="f32",
    )
    shapes = {
        "router.scale": ("ffn_gate_inp.scale", (n_embd,)),
        "router.per_expert_scale": ("ffn_down_exps.scale", (n,)),
        "experts.gate_up_proj": ("ffn_gate_up_exps.weight", (n, 2 * n_ff, n_embd)),
        "experts.down_proj": ("ffn_down_exps.weight", (n, n_embd, n_ff)),
    }
    return [router, *matrices(source, target, shapes)]


def _inner_rules(source: Source, sizes: Sizes, layout: _Layout) -> list[Rule]:
    """Return the rules of the embeddings that every layer has of its own."""
    if not layout.n_inner:
        return []
    source.text.require("vocab_size_per_layer_input", (source.n_vocab,), default=source.n_vocab)
    width = sizes.n_layers * layout.n_inner
    shapes = {
        "embed_tokens_per_layer.weight": ("per_layer_token_embd.weight", (source.n_vocab, width)),
        "per_layer_model_projection.weight": ("per_layer_model_proj.weight", (width, sizes.n_embd)),
        "per_layer_projection_norm.weight": ("per_layer_proj_norm.weight", (layout.n_inner,)),
    }
    return matrices(source.prefixes.text, "", shapes)


def _rope_section(text: Section, kind: str) -> Section:
    """Return the rotary settings of the layers of one kind."""
    key = "rope_parameters"
    both = text.section(key) if text.has(key) else text.empty(key)
    for flat in ("rope_type", "rope_theta", "factor"):
        if both.has(flat):
            both.fail(flat, f"no such key here, but a section {_FULL} and one {_SLIDING}")
    return both.section(kind) if both.has(kind) else both.empty(kind)


def _rotary_factors(text: Section, layout: _Layout) -> tuple[Mapped, ...]:
    """Return what full layers divide their angles by: channels behind the first are not rotated."""
    full = _rope_section(text, _FULL)
    full.require("rope_type", ("proportional",), default="proportional")
    full.require("factor", (1.0, 1), default=1.0)
    given = full.number(
        "partial_rotary_factor", low=0.0, high=1.0, default=1.0 if full.keys() else _ROTATED
    )
    n_rotated = int(layout.full_head * given / 2)
    factors = np.full(layout.full_head // 2, _STILL, dtype=np.float32)
    factors[:n_rotated] = 1
    return (computed("rope_freqs.weight", factors),)


def _metadata(text: Section, sizes: Sizes, layout: _Layout) -> dict[str, Value]:
    """Return the keys before the file type."""
    full, sliding = (_rope_section(text, kind) for kind in (_FULL, _SLIDING))
    sliding.require("rope_type", ("default",), default="default")
    sliding.require("partial_rotary_factor", (1.0, 1), default=1.0)
    layers = range(sizes.n_layers)
    n_ff: Value = u32(sizes.n_ff)
    if layout.is_wide:
        n_ff = array("INT32", [layout.n_ff(layer, sizes) for layer in layers])
    n_kv: Value = u32(sizes.n_head_kv)
    if layout.full_kv != sizes.n_head_kv:
        n_kv = array("INT32", [layout.n_kv(layer, sizes) for layer in layers])
    theta = full.number("rope_theta", low=1.0, high=1e12, default=_THETA)
    local = sliding.number("rope_theta", low=1.0, high=1e12, default=_LOCAL_THETA)
    return {
        f"{_NAME}.block_count": u32(sizes.n_layers),
        f"{_NAME}.context_length": u32(
            text.integer("max_position_embeddings", low=1, high=1 << 31)
        ),
        f"{_NAME}.embedding_length": u32(sizes.n_embd),
        f"{_NAME}.feed_forward_length": n_ff,
        f"{_NAME}.attention.head_count": u32(sizes.n_head),
        f"{_NAME}.attention.head_count_kv": n_kv,
        f"{_NAME}.rope.freq_base": f32(theta),
        f"{_NAME}.rope.freq_base_swa": f32(local),
        **norm_metadata(_NAME, text),
        **(count_metadata(_NAME, layout.experts) if layout.experts else {}),
        f"{_NAME}.attention.key_length": u32(layout.full_head),
        f"{_NAME}.attention.value_length": u32(layout.full_head),
    }


def _late_metadata(text: Section, sizes: Sizes, layout: _Layout) -> dict[str, Value]:
    """Return the keys behind the file type."""
    cap: dict[str, Value] = {}
    if text.has("final_logit_softcapping"):
        limit = text.number("final_logit_softcapping", low=1e-3, high=1e6)
        cap[f"{_NAME}.final_logit_softcapping"] = f32(limit)
    window = text.integer("sliding_window", low=1, high=1 << 31)
    experts = layout.experts
    return {
        **cap,
        f"{_NAME}.attention.sliding_window": u32(window),
        f"{_NAME}.attention.shared_kv_layers": u32(sizes.n_layers - layout.n_own),
        f"{_NAME}.embedding_length_per_layer_input": u32(layout.n_inner),
        f"{_NAME}.attention.sliding_window_pattern": array("BOOL", list(layout.slides)),
        f"{_NAME}.attention.key_length_swa": u32(sizes.head_dim),
        f"{_NAME}.attention.value_length_swa": u32(sizes.head_dim),
        **({f"{_NAME}.expert_feed_forward_length": u32(experts.n_ff)} if experts else {}),
        f"{_NAME}.rope.dimension_count": u32(layout.full_head),
        f"{_NAME}.rope.dimension_count_swa": u32(sizes.head_dim),
    }


GEMMA4 = TextArchitecture(
    name=_NAME, model_types=("gemma4_text",), defaults=_DEFAULTS, build=build_gemma4
)
