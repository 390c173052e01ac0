"""Qwen4-Exp: Qwen3.5's hybrid with experts, several residual streams, an indexer, n-grams.

llama.cpp's `qwen4exp`. A layer reads a mixture of the streams and adds to each of them
(hyper-connections), in place of norms; attention looks at as many tokens as an indexer's budget
allows; one layer adds embeddings of n-grams. Facts: names and shapes, and what the graph computes
in one way only, from llama.cpp src/models/qwen4exp.cpp; keys and transforms from
conversion/qwen4exp.py; defaults from transformers' `Qwen4ExpTextConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, u32
from edgevlm_convert.row_rules import Cut
from edgevlm_convert.rules import Drop, Rename, Rule, Transform
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
from edgevlm_convert.text.linear_attention import (
    DeltaNet,
    delta_net_losses,
    delta_net_metadata,
    delta_net_rules,
    read_delta_net,
)
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.ngrams import Ngrams, ngram_metadata, ngram_rules, read_ngrams
from edgevlm_convert.text.qwen3_5 import gated_attention_rules
from edgevlm_convert.text.rope import PLAIN_KINDS, read_n_rotated, read_rope
from edgevlm_convert.transforms import plus_one

_DEFAULTS = {
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 248320,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "hc_count": 4,
    "hc_lowrank": 320,
    "ple_conv_kernel_size": 4,
    "ngram_size": 3,
    "heads_per_ngram": 8,
    "split_ngram_parts": 512,
}
_SECTIONS = (11, 11, 10)
_INTERVAL = 4
_LINEAR, _INDEXED = "linear_attention", ("full_attention", "indexed_attention")
# GGML_ASSERT of src/llama-memory-hybrid-idx.cpp.
_MAX_RATIO = 64
_MTP_PREFIXES = ("mtp.", "model.mtp.")
_NO_MTP = "multi-token prediction: llama.cpp has no graph for this architecture's"


@dataclass(frozen=True, kw_only=True)
class _Indexer:
    """What chooses the tokens that attention looks at.

    Attributes:
        n_heads: of its queries.
        head_dim: channels of a head.
        budget: tokens.
        ratio: tokens of a block, which is taken or left as a whole.
    """

    n_heads: int
    head_dim: int
    budget: int
    ratio: int


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The numbers of a model; `n_streams` of the residual, mixed through `rank` channels."""

    source: Source
    sizes: Sizes
    net: DeltaNet
    experts: Experts
    indexer: _Indexer
    ngrams: Ngrams | None
    is_linear: list[bool]
    n_streams: int
    rank: int


def build_qwen4_exp(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
        ConversionError: the constants of n-grams are missing.
    """
    text, name = source.text, QWEN4_EXP.name
    model = _read_model(source)
    sizes, epsilon = model.sizes, text.number("rms_norm_eps", low=1e-12, high=1.0)
    n_rotated = read_n_rotated(text, head_dim=sizes.head_dim, default=1.0)
    if n_rotated > model.indexer.head_dim:
        text.fail("indexer_head_dim", f"at least the {n_rotated} rotated channels of a head")
    rope = read_rope(text, head_dim=n_rotated, kinds=PLAIN_KINDS, partial=True)
    sections = read_sections(rope, default=_SECTIONS, half=n_rotated // 2, interleaved=True)
    return Part(
        rules=tuple(_rules(model)),
        metadata={
            **size_metadata(name, text, sizes, rope),
            f"{name}.rope.dimension_sections": array("INT32", sections),
            **rope_base(name, rope),
            **norm_metadata(name, text),
            **count_metadata(name, model.experts),
            **head_metadata(name, text, sizes),
        },
        late_metadata={
            **width_metadata(name, model.experts),
            **delta_net_metadata(name, model.net),
            f"{name}.attention.recurrent_layers": array("BOOL", model.is_linear),
            f"{name}.full_attention_interval": u32(_interval(text, model.is_linear)),
            f"{name}.rope.dimension_count": u32(n_rotated),
            f"{name}.hyper_connection.count": u32(model.n_streams),
            f"{name}.hyper_connection.low_rank": u32(model.rank),
            **_indexer_metadata(name, model),
            **(ngram_metadata(name, source, model.ngrams) if model.ngrams else {}),
        },
        losses=(*delta_net_losses(epsilon), _budget_loss(model.indexer)),
    )


def _read_model(source: Source) -> _Model:
    text = source.text
    text.require("hidden_act", ("silu",), default="silu")
    text.require("attention_bias", (False,), default=False)
    text.require("norm_topk_prob", (True,), default=True)
    # Without the key it is the activation of the feed-forward networks.
    text.require("output_gate_type", ("sigmoid",), default="silu")
    sizes = read_sizes(text, dense=False)
    is_linear = _linear_layers(text, sizes.n_layers)
    ngrams = read_ngrams(source, sizes.n_embd, is_linear)
    return _Model(
        source=source,
        sizes=sizes,
        net=read_delta_net(text, sizes.n_embd),
        experts=read_experts(text, shared=True),
        indexer=_read_indexer(text),
        ngrams=ngrams,
        is_linear=is_linear,
        n_streams=text.integer("hc_count", low=2, high=64),
        rank=text.integer("hc_lowrank", low=1, high=MAX_WIDTH),
    )


def _read_indexer(text: Section) -> _Indexer:
    text.require("indexer_kv_heads", (1,), default=None)
    ratio = text.integer("indexer_compress_ratio", low=1, high=_MAX_RATIO)
    budget = text.integer("indexer_budget", low=ratio, high=1 << 30)
    if budget % ratio:
        text.fail("indexer_budget", f"a multiple of the {ratio} tokens of a block")
    return _Indexer(
        n_heads=text.integer("indexer_n_heads", low=1, high=MAX_HEADS),
        head_dim=text.integer("indexer_head_dim", low=2, high=4096),
        budget=budget,
        ratio=ratio,
    )


def _budget_loss(indexer: _Indexer) -> str:
    more, budget = indexer.ratio - 1, indexer.budget
    return (
        f"contexts of more than {budget} tokens: llama.cpp looks at up to {more} tokens beside the"
        f" {budget} that this model's indexer chooses"
    )


def _linear_layers(text: Section, n_layers: int) -> list[bool]:
    if not text.has("layer_types"):
        every = text.integer("full_attention_interval", low=1, high=MAX_LAYERS, default=_INTERVAL)
        return [bool((layer + 1) % every) for layer in range(n_layers)]
    kinds = text.texts("layer_types")
    if len(kinds) != n_layers or set(kinds) - {_LINEAR, *_INDEXED}:
        text.fail("layer_types", f"{_LINEAR} or {_INDEXED[0]} for each of {n_layers}")
    return [kind == _LINEAR for kind in kinds]


def _interval(text: Section, is_linear: list[bool]) -> int:
    usual = is_linear.index(False) + 1 if False in is_linear else _INTERVAL
    return text.integer("full_attention_interval", low=1, high=MAX_LAYERS, default=usual)


def _indexer_metadata(name: str, model: _Model) -> dict[str, Value]:
    indexer = model.indexer
    ratios = [0 if linear else indexer.ratio for linear in model.is_linear]
    return {
        f"{name}.attention.indexer.head_count": u32(indexer.n_heads),
        f"{name}.attention.indexer.key_length": u32(indexer.head_dim),
        f"{name}.attention.indexer.top_k": u32(indexer.budget),
        f"{name}.attention.compress_ratios": array("INT32", ratios),
    }


def _rules(model: _Model) -> list[Rule]:
    source, sizes = model.source, model.sizes
    prefix, n_embd = source.prefixes.text, sizes.n_embd
    # The last mixture of the streams stands in for the last norm.
    outer = [
        rule
        for rule in model_rules(source, n_embd)
        if not (isinstance(rule, Rename) and rule.target == "output_norm.weight")
    ]
    rules = outer + _mixer_rules(model, f"{prefix}hyper_connection_mixer.", "output_hc_")
    for layer, linear in enumerate(model.is_linear):
        rules += _layer_rules(model, f"{prefix}layers.{layer}.", f"blk.{layer}.", linear=linear)
    if model.ngrams:
        rules += ngram_rules(source, model.ngrams, n_embd, model.n_streams)
    mtp = (name for name in source.shapes if name.startswith(_MTP_PREFIXES))
    return rules + [Drop(source=name, reason=_NO_MTP) for name in mtp]


def _layer_rules(model: _Model, source: str, target: str, *, linear: bool) -> list[Rule]:
    sizes, wide = model.sizes, model.n_streams * model.sizes.n_embd
    rules: list[Rule] = []
    for part, to in (("attn", "hc_attn_"), ("mlp", "hc_ffn_")):
        connection = f"{source}{part}_hyper_connection."
        rules += _mixer_rules(model, connection, f"{target}{to}")
        rules.append(
            Rename(
                source=f"{connection}block_inject_weight.weight",
                target=f"{target}{to}inject.weight",
                shape=(model.n_streams, wide),
            )
        )
    if linear:
        rules += delta_net_rules(source, target, model.net)
    else:
        attention = gated_attention_rules(source, target, sizes)
        rules += [_around_one(rule) for rule in attention]
        rules += _indexer_rules(model, f"{source}self_attn.indexer.", f"{target}indexer.")
    return rules + expert_rules(model.source, source, target, sizes.n_embd, model.experts)


def _around_one(rule: Rule) -> Rule:
    if isinstance(rule, Rename) and rule.target.endswith("norm.weight"):
        return Transform(source=rule.source, target=rule.target, shape=rule.shape, rows=plus_one)
    return rule


def _mixer_rules(model: _Model, source: str, target: str) -> list[Rule]:
    """Return the rules of what mixes the streams into one."""
    wide = model.n_streams * model.sizes.n_embd
    down = Rename(
        source=f"{source}input_mix_weight_down.weight",
        target=f"{target}down.weight",
        shape=(model.rank, wide),
    )
    up = replace(
        down,
        source=f"{source}input_mix_weight_up.weight",
        target=f"{target}up.weight",
        shape=(wide, model.rank),
    )
    norm = Transform(
        source=f"{source}hc_norm.weight",
        target=f"{target}norm.weight",
        shape=(wide,),
        rows=plus_one,
    )
    return [norm, down, up]


def _indexer_rules(model: _Model, source: str, target: str) -> list[Rule]:
    indexer = model.indexer
    norms = [
        Transform(
            source=f"{source}{letter}_layernorm.weight",
            target=f"{target}{letter}_norm.weight",
            shape=(indexer.head_dim,),
            rows=plus_one,
        )
        for letter in "qk"
    ]
    joint = Cut(
        source=f"{source}index_qk_proj.weight",
        width=model.sizes.n_embd,
        targets={
            f"{target}q_proj.weight": indexer.n_heads * indexer.head_dim,
            f"{target}k_proj.weight": indexer.head_dim,
        },
    )
    return [joint, *norms]


QWEN4_EXP = TextArchitecture(
    name="qwen4exp", model_types=("qwen4_exp_text",), defaults=_DEFAULTS, build=build_qwen4_exp
)
