"""Which tensor type every tensor of a file gets, decided as llama.cpp's own quantizer decides.

Facts: llama.cpp src/llama-quant.cpp as vendored in llama-cpp-python 0.3.36. What is kept as it was,
how roles are told by name, the order in which attention and feed-forward tensors are counted, tied
outputs and fallbacks are equal; its exceptions for models that no edge machine runs (Falcon, GLM-5,
70 B by layer count) are left out.

The projector has rules of its own: llama.cpp's count layers wrongly there (names `v.blk.N` do
not match its `blk.N`, and the layer count reads as 0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from edgevlm_convert.encoder import TensorInfo

from edgevlm.errors import QuantizationError
from edgevlm.ggml_types import TENSOR_TYPES
from edgevlm.quantize.profile import QuantProfile, Rule

_LAST_RESORT = "F16"
# What can be quantized: tables of integers stay as they are.
_FLOATS = ("F32", "F16", "BF16")
_BLOCK_NUMBER = re.compile(r"blk\.\s*([+-]?\d+)")
_PROJECTOR_BLOCK_NUMBER = re.compile(r"[a-z]+\.blk\.(\d+)\.")

# Part of the name -> role, the first that occurs wins.
_TEXT_ROLES = (
    ("attn_qkv.weight", "attn_qkv"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
_PROJECTOR_ROLES = (*_TEXT_ROLES, ("attn_out.weight", "attn_output"))
_TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_COUNTED = {"attn_v": "attn_v", "attn_qkv": "attn_v", "ffn_down": "ffn_down"}

# Weights that stay as they were: whole names, and parts of names.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
# The graph of Gemma 3 transposes its projection, which corrupts memory with any type of blocks.
_TRANSPOSED = "mm.input_projection.weight"
_PROJECTOR_KEPT_PARTS = (*_KEPT_PARTS, "norm", ".ln", "class_embd", "_embd", "embed", _TRANSPOSED)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What rules ask of the model as a whole.

    Attributes:
        n_layers: `block_count`.
        n_experts: 0 in a dense model.
        n_gqa: query heads per key head of the first layer, rounded down; 0 when it has none.
        has_imatrix: whether an importance matrix is used.
    """

    n_layers: int
    n_experts: int
    n_gqa: int
    has_imatrix: bool


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """One tensor as rules see it."""

    role: str
    is_experts: bool
    layer: int | None
    n_layers: int


def plan_text(
    profile: QuantProfile,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    *,
    has_imatrix: bool = False,
) -> dict[str, str]:
    """Return the type of every tensor of a text model by name.

    Args:
        profile: the level.
        tensors: all tensors of the file, in any order.
        metadata: at least `general.architecture` and `<arch>.block_count`, each with a `.value`.
        has_imatrix: whether an importance matrix will be used.

    Raises:
        QuantizationError: the metadata lacks what the rules need.
    """
    model = _model(metadata, has_imatrix=has_imatrix)
    ordered = sorted(tensors, key=lambda tensor: _name_order(tensor.name))
    names = {tensor.name for tensor in tensors}
    is_tied = "output.weight" not in names
    roles = {name: _text_role(name, is_tied=is_tied) for name in names}
    n_attn_v = sum(_COUNTED.get(role) == "attn_v" for role in roles.values())
    counts = {"attn_v": n_attn_v, "ffn_down": model.n_layers}
    seen = dict.fromkeys(counts, 0)
    types: dict[str, str] = {}
    for tensor in ordered:
        role = roles[tensor.name]
        if not _is_quantized_in_text(tensor):
            types[tensor.name] = tensor.type
            continue
        subject = _Subject(
            role=role,
            is_experts="_exps" in tensor.name,
            layer=_block_number(_BLOCK_NUMBER, tensor.name),
            n_layers=model.n_layers,
        )
        counter = _COUNTED.get(role)
        if counter is not None:
            # With experts llama.cpp takes the number from the name, for they may be unordered.
            if counter == "attn_v" or model.n_experts <= 1:
                subject = replace(subject, layer=seen[counter], n_layers=counts[counter])
            seen[counter] += 1
        wanted = _wanted(profile.rules, subject, model) or profile.type
        types[tensor.name] = _fitting(profile, wanted, tensor.shape[-1]) or _LAST_RESORT
    return types


def plan_projector(
    type: str,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    *,
    profile: QuantProfile | None = None,
) -> dict[str, str]:
    """Return the type of every tensor of a projector (mmproj) by name.

    Matrices become `type`. Patch embeddings, positions, norms and biases stay as they were, and so
    does a matrix whose rows the type's block does not divide.

    Args:
        type: "F16", "BF16", "Q8_0" ...
        tensors: all tensors of the file, in any order.
        metadata: of the file.
        profile: its `[mmproj]` rules hold where `type` is its own projector type.
    """
    rules = profile.mmproj.rules if profile is not None and profile.mmproj.type == type else ()
    n_layers = _integer(metadata, "clip.vision.block_count") or 0
    model = Model(n_layers=n_layers, n_experts=0, n_gqa=1, has_imatrix=False)
    types: dict[str, str] = {}
    for tensor in tensors:
        types[tensor.name] = tensor.type
        if not _is_projector_matrix(tensor):
            continue
        subject = _Subject(
            role=_role(_PROJECTOR_ROLES, tensor.name),
            is_experts=False,
            layer=_block_number(_PROJECTOR_BLOCK_NUMBER, tensor.name),
            n_layers=n_layers,
        )
        wanted = _wanted(rules, subject, model) or type
        types[tensor.name] = _fitting(profile, wanted, tensor.shape[-1]) or tensor.type
    return types


def uses_more_bits(layer: int, n_layers: int) -> bool:
    """Whether llama.cpp's K_M mixtures spend more bits on this layer."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _wanted(rules: Sequence[Rule], subject: _Subject, model: Model) -> str | None:
    for rule in rules:
        if _matches(rule, subject, model):
            return rule.type
    return None


def _matches(rule: Rule, subject: _Subject, model: Model) -> bool:
    return (
        (rule.role == subject.role or (rule.role == "experts" and subject.is_experts))
        and (rule.gqa_min is None or model.n_gqa >= rule.gqa_min)
        and (rule.experts is None or model.n_experts == rule.experts)
        and (rule.imatrix == "any" or (rule.imatrix == "with") == model.has_imatrix)
        and _in_layers(rule.layers, subject)
    )


def _in_layers(layers: str, subject: _Subject) -> bool:
    if layers == "all":
        return True
    if subject.layer is None:
        return False
    if layers == "more":
        return uses_more_bits(subject.layer, subject.n_layers)
    first = layers.removeprefix("first_")
    if first.endswith("th"):
        return subject.layer < subject.n_layers // int(first.removesuffix("th"))
    return subject.layer < int(first)


def _fitting(profile: QuantProfile | None, wanted: str, row_length: int) -> str | None:
    """The wanted type or its fallback, None when the rows divide by neither's block."""
    if row_length % TENSOR_TYPES[wanted].block_size and profile is not None:
        wanted = profile.fallback.get(wanted, wanted)
    return None if row_length % TENSOR_TYPES[wanted].block_size else wanted


def _text_role(name: str, *, is_tied: bool) -> str:
    if name == "output.weight":
        return "output"
    if name in _TOKEN_EMBEDDINGS:
        return "output" if is_tied else "token_embd"
    return _role(_TEXT_ROLES, name)


def _role(roles: Sequence[tuple[str, str]], name: str) -> str:
    return next((role for part, role in roles if part in name), "other")


def _is_quantized_in_text(tensor: TensorInfo) -> bool:
    return (
        tensor.type in _FLOATS
        and _n_dimensions(tensor.shape) in (2, 3)
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not any(part in tensor.name for part in _KEPT_PARTS)
    )


def _is_projector_matrix(tensor: TensorInfo) -> bool:
    return (
        tensor.type in _FLOATS
        and _n_dimensions(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and not any(part in tensor.name for part in _PROJECTOR_KEPT_PARTS)
    )


def _n_dimensions(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: leading ones (numpy order) do not count."""
    for index, size in enumerate(shape):
        if size > 1:
            return len(shape) - index
    return 1


def _name_order(name: str) -> tuple[int, bytes]:
    """By block number, tensors outside of blocks first, then by name."""
    number = _block_number(_BLOCK_NUMBER, name)
    return (-1 if number is None else number, name.encode("utf-8", "surrogateescape"))


def _block_number(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.match(name)
    return int(match.group(1)) if match else None


def _model(metadata: Mapping[str, object], *, has_imatrix: bool) -> Model:
    architecture = getattr(metadata.get("general.architecture"), "value", None)
    n_layers = _integer(metadata, f"{architecture}.block_count")
    if n_layers is None:
        raise QuantizationError(
            f"the metadata has no whole number `{architecture}.block_count`",
            hint="convert the model again; only a text model can be quantized to this level",
        )
    n_heads = _integer(metadata, f"{architecture}.attention.head_count") or 0
    n_kv_heads = _integer(metadata, f"{architecture}.attention.head_count_kv")
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    return Model(
        n_layers=n_layers,
        n_experts=_integer(metadata, f"{architecture}.expert_count") or 0,
        n_gqa=n_heads // n_kv_heads if n_kv_heads else 0,
        has_imatrix=has_imatrix,
    )


def _integer(metadata: Mapping[str, object], key: str) -> int | None:
    """A whole number, the first one where the key holds one per layer."""
    value: object = getattr(metadata.get(key), "value", None)
    if isinstance(value, list | tuple) and value:
        value = cast(Sequence[object], value)[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None
