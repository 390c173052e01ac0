"""Qwen3.5: three layers of linear attention, then one of gated attention. llama.cpp's `qwen35`.

With experts it is `qwen35moe`. Checkpoints may end with layers for multi-token prediction (MTP):
files keep them as llama.cpp's converter does (`nextn`), and its graph for answers goes without.

Facts: names and shapes from llama.cpp src/models/qwen35.cpp and qwen35moe.cpp; keys and transforms
from conversion/qwen.py (`Qwen3NextModel`, `_QwenMtpMixin`, `_Qwen35MRopeMixin`); defaults from
transformers' `Qwen3_5TextConfig` and `Qwen3_5MoeTextConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgevlm_convert.config import MAX_LAYERS, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import array, u32
from edgevlm_convert.rules import Rename, Rule, Shape, Transform
from edgevlm_convert.text.decoder import (
    Sizes,
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
from edgevlm_convert.text.rope import PLAIN_KINDS, read_n_rotated, read_rope
from edgevlm_convert.transforms import plus_one

_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 248320,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_MOE_DEFAULTS = {
    **{key: value for key, value in _DEFAULTS.items() if key != "intermediate_size"},
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}
_SECTIONS = (11, 11, 10)
_ROTARY_FACTOR = 0.25
_INTERVAL = 4
_MTP_PREFIXES = ("mtp.", "model.mtp.")


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The numbers of a model.

    Attributes:
        source: what it is built from.
        sizes: of attention and feed-forward networks.
        net: of linear attention.
        experts: None for a dense model.
        mtp_prefix: of MTP tensors in the checkpoint.
        n_mtp: MTP layers in the checkpoint.
    """

    source: Source
    sizes: Sizes
    net: DeltaNet
    experts: Experts | None
    mtp_prefix: str
    n_mtp: int


def build_qwen3_5(source: Source) -> Part:
    """Return rules and metadata of a dense Qwen3.5.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    return _build(source, QWEN3_5.name, read_sizes(source.text), None)


def build_qwen3_5_moe(source: Source) -> Part:
    """Return rules and metadata of a Qwen3.5 with experts.

    Raises:
        CheckpointError: as `build_qwen3_5`.
    """
    text = source.text
    sizes = read_sizes(text, dense=False)
    return _build(source, QWEN3_5_MOE.name, sizes, read_experts(text, shared=True))


def _build(source: Source, name: str, sizes: Sizes, experts: Experts | None) -> Part:
    text = source.text
    text.require("hidden_act", ("silu",), default="silu")
    text.require("attention_bias", (False,), default=False)
    text.require("attn_output_gate", (True,), default=True)
    prefix, n_mtp = _find_mtp(source)
    net = read_delta_net(text, sizes.n_embd)
    model = _Model(
        source=source, sizes=sizes, net=net, experts=experts, mtp_prefix=prefix, n_mtp=n_mtp
    )
    n_rotated = read_n_rotated(text, head_dim=sizes.head_dim, default=_ROTARY_FACTOR)
    rope = read_rope(text, head_dim=n_rotated, kinds=PLAIN_KINDS, partial=True)
    sections = {
        f"{name}.rope.dimension_sections": array(
            "INT32",
            read_sections(rope, default=_SECTIONS, half=n_rotated // 2, interleaved=True),
        )
    }
    # llama.cpp writes what the config says early, and the class's own sections last.
    early, late = (sections, {}) if rope.section.has("mrope_section") else ({}, sections)
    is_linear = _linear_layers(text, sizes.n_layers)
    return Part(
        rules=_rules(model, is_linear),
        metadata={
            **size_metadata(name, text, replace(sizes, n_layers=sizes.n_layers + n_mtp), rope),
            **early,
            **rope_base(name, rope),
            **norm_metadata(name, text),
            **(count_metadata(name, experts) if experts else {}),
            **head_metadata(name, text, sizes),
        },
        late_metadata={
            **(width_metadata(name, experts) if experts else {}),
            **({f"{name}.nextn_predict_layers": u32(n_mtp)} if n_mtp else {}),
            **delta_net_metadata(name, net),
            f"{name}.attention.recurrent_layers": array("BOOL", [*is_linear, *[False] * n_mtp]),
            f"{name}.full_attention_interval": u32(_interval(text, is_linear)),
            f"{name}.rope.dimension_count": u32(n_rotated),
            **late,
        },
        losses=delta_net_losses(text.number("rms_norm_eps", low=1e-12, high=1.0)),
    )


def _linear_layers(text: Section, n_layers: int) -> list[bool]:
    """Return which layers have linear attention.

    Raises:
        CheckpointError: of another kind, or of another number of layers.
    """
    if not text.has("layer_types"):
        interval = _read_interval(text)
        return [bool((layer + 1) % interval) for layer in range(n_layers)]
    kinds = text.texts("layer_types")
    if len(kinds) != n_layers or set(kinds) - {"linear_attention", "full_attention"}:
        text.fail("layer_types", f"linear_attention or full_attention for each of {n_layers}")
    return [kind == "linear_attention" for kind in kinds]


def _read_interval(text: Section) -> int:
    return text.integer("full_attention_interval", low=1, high=MAX_LAYERS, default=_INTERVAL)


def _interval(text: Section, is_linear: Sequence[bool]) -> int:
    """Return the interval for runtimes that do not read which layers are linear."""
    if text.has("full_attention_interval") or False not in is_linear:
        return _read_interval(text)
    return is_linear.index(False) + 1


def _find_mtp(source: Source) -> tuple[str, int]:
    """Return prefix and number of the checkpoint's MTP layers.

    Its tensors decide: a fine-tune saved by transformers has none, and a config that names one.
    """
    for prefix in _MTP_PREFIXES:
        stem = f"{prefix}layers."
        rests = [name.removeprefix(stem) for name in source.shapes if name.startswith(stem)]
        numbers = {rest.partition(".")[0] for rest in rests}
        if numbers:
            return prefix, len(numbers)
    return _MTP_PREFIXES[0], 0


def _rules(model: _Model, is_linear: Sequence[bool]) -> tuple[Rule, ...]:
    source, sizes = model.source, model.sizes
    prefix = source.prefixes.text
    rules = model_rules(source, sizes.n_embd)
    for layer, linear in enumerate(is_linear):
        rules += _layer_rules(model, f"{prefix}layers.{layer}.", f"blk.{layer}.", linear=linear)
    for number in range(model.n_mtp):
        target = f"blk.{sizes.n_layers + number}."
        rules += _layer_rules(model, f"{model.mtp_prefix}layers.{number}.", target, linear=False)
    if model.n_mtp:
        rules += _mtp_rules(model.mtp_prefix, f"blk.{sizes.n_layers}.nextn.", sizes.n_embd)
    return tuple(_norms_around_one(rules))


def _mtp_rules(source: str, target: str, n_embd: int) -> list[Rule]:
    """Return the rules of what joins the first MTP layer to the model."""
    shapes: dict[str, tuple[str, Shape]] = {
        "fc.weight": ("eh_proj.weight", (n_embd, 2 * n_embd)),
        "pre_fc_norm_embedding.weight": ("enorm.weight", (n_embd,)),
        "pre_fc_norm_hidden.weight": ("hnorm.weight", (n_embd,)),
        "norm.weight": ("shared_head_norm.weight", (n_embd,)),
    }
    return matrices(source, target, shapes)


def _layer_rules(model: _Model, source: str, target: str, *, linear: bool) -> list[Rule]:
    sizes = model.sizes
    norms: dict[str, tuple[str, Shape]] = {
        "input_layernorm.weight": ("attn_norm.weight", (sizes.n_embd,)),
        "post_attention_layernorm.weight": ("post_attention_norm.weight", (sizes.n_embd,)),
    }
    rules = matrices(source, target, norms)
    if linear:
        rules += delta_net_rules(source, target, model.net)
    else:
        rules += gated_attention_rules(source, target, sizes)
    if model.experts is None:
        return rules + mlp_rules(source, target, sizes.n_embd, sizes.n_ff)
    return rules + expert_rules(model.source, source, target, sizes.n_embd, model.experts)


def gated_attention_rules(source: str, target: str, sizes: Sizes) -> list[Rule]:
    """Return the rules of attention; each query head has a gate of its size beside it."""
    shapes: dict[str, tuple[str, Shape]] = {
        "q_proj.weight": ("attn_q.weight", (2 * sizes.n_query, sizes.n_embd)),
        "k_proj.weight": ("attn_k.weight", (sizes.n_key, sizes.n_embd)),
        "v_proj.weight": ("attn_v.weight", (sizes.n_key, sizes.n_embd)),
        "o_proj.weight": ("attn_output.weight", (sizes.n_embd, sizes.n_query)),
    }
    return [
        *matrices(f"{source}self_attn.", target, shapes),
        *head_norm_rules(source, target, sizes.head_dim),
    ]


def _norms_around_one(rules: Sequence[Rule]) -> list[Rule]:
    """Return the rules with 1 added to every norm but that of linear attention."""
    changed: list[Rule] = []
    for rule in rules:
        if (
            isinstance(rule, Rename)
            and rule.target.endswith("norm.weight")
            and not rule.target.endswith("ssm_norm.weight")
        ):
            rule = Transform(
                source=rule.source, target=rule.target, shape=rule.shape, rows=plus_one
            )
        changed.append(rule)
    return changed


QWEN3_5 = TextArchitecture(
    name="qwen35", model_types=("qwen3_5_text",), defaults=_DEFAULTS, build=build_qwen3_5
)
QWEN3_5_MOE = TextArchitecture(
    name="qwen35moe",
    model_types=("qwen3_5_moe_text",),
    defaults=_MOE_DEFAULTS,
    build=build_qwen3_5_moe,
)
