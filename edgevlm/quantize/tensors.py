"""What a tensor and its model are to the rules of a profile.

Facts: llama.cpp src/llama-quant.cpp as vendored in llama-cpp-python 0.3.36: which tensors are kept
as they were, how roles are told by name, in which order blocks are walked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edgevlm_convert.encoder import TensorInfo

from edgevlm.errors import QuantizationError
from edgevlm.ggml_types import TENSOR_TYPES
from edgevlm.quantize.profile import WEIGHT_TYPES, Rule

FLOATS = ("F32", "F16", "BF16")
# What can be quantized, blocks that are encoded again too: tables of integers stay as they are.
MATRIX_TYPES = frozenset(WEIGHT_TYPES)
_BLOCK_NUMBER = re.compile(r"blk\.\s*([+-]?\d+)")

# Part of the name -> role, the first that occurs wins.
ROLES_BY_PART = (
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
TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# Weights that stay as they were: whole names, and parts of names.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
KEPT_PARTS = (
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
class Subject:
    """One tensor as rules see it.

    Attributes:
        name: of the tensor.
        role: see `edgevlm.quantize.profile`.
        is_experts: whether it holds the matrices of all experts.
        layer: the layer that counts for rules; None: outside of the layers.
        n_layers: among how many.
        n_before: how many of its role came before it.
    """

    name: str
    role: str
    is_experts: bool = False
    layer: int | None = None
    n_layers: int = 0
    n_before: int = 0


def first_match(rules: Sequence[Rule], subject: Subject, model: Model) -> Rule | None:
    """Return the first rule that holds for a tensor, None when none does."""
    return next((rule for rule in rules if _holds(rule, subject, model)), None)


def fitting(wanted: str, fallback: str | None, row_length: int) -> str | None:
    """Return the type wanted, else its fallback; None: the blocks of neither divide the rows."""
    if row_length % TENSOR_TYPES[wanted].block_size:
        wanted = fallback or wanted
    return None if row_length % TENSOR_TYPES[wanted].block_size else wanted


def uses_more_bits(layer: int, n_layers: int) -> bool:
    """Whether llama.cpp's K_M mixtures spend more bits on this layer."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def text_role(name: str, *, is_tied: bool) -> str:
    """Return the role of a text model's tensor; a tied token embedding is the output as well."""
    if name == "output.weight":
        return "output"
    if name in TOKEN_EMBEDDINGS:
        return "output" if is_tied else "token_embd"
    return role_by_part(ROLES_BY_PART, name)


def role_by_part(roles: Sequence[tuple[str, str]], name: str) -> str:
    """Return the role whose part of a name occurs first in `roles`, "other" for none."""
    return next((role for part, role in roles if part in name), "other")


def is_text_matrix(tensor: TensorInfo) -> bool:
    """Whether a text model's tensor is quantized at all."""
    return (
        tensor.type in MATRIX_TYPES
        and n_dimensions(tensor.shape) in (2, 3)
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not any(part in tensor.name for part in KEPT_PARTS)
    )


def n_dimensions(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: leading ones (numpy order) do not count."""
    for index, size in enumerate(shape):
        if size > 1:
            return len(shape) - index
    return 1


def name_order(name: str) -> tuple[int, bytes]:
    """By block number, tensors outside of blocks first, then by name."""
    number = block_number(name)
    return (-1 if number is None else number, name.encode("utf-8", "surrogateescape"))


def block_number(name: str) -> int | None:
    """Return the number of a text model's block, None outside of blocks."""
    match = _BLOCK_NUMBER.match(name)
    return int(match.group(1)) if match else None


def read_model(metadata: Mapping[str, object], *, has_imatrix: bool) -> Model:
    """Return what a text model's metadata tells the rules.

    Raises:
        QuantizationError: it does not tell how many layers there are.
    """
    architecture = getattr(metadata.get("general.architecture"), "value", None)
    n_layers = integer(metadata, f"{architecture}.block_count")
    if n_layers is None:
        raise QuantizationError(
            f"the metadata has no whole number `{architecture}.block_count`",
            hint="convert the model again; only a text model can be quantized to this level",
        )
    n_heads = integer(metadata, f"{architecture}.attention.head_count") or 0
    n_kv_heads = integer(metadata, f"{architecture}.attention.head_count_kv")
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    return Model(
        n_layers=n_layers,
        n_experts=integer(metadata, f"{architecture}.expert_count") or 0,
        n_gqa=n_heads // n_kv_heads if n_kv_heads else 0,
        has_imatrix=has_imatrix,
    )


def integer(metadata: Mapping[str, object], key: str) -> int | None:
    """Return a whole number, the first one where the key holds one per layer."""
    value: object = getattr(metadata.get(key), "value", None)
    if isinstance(value, list | tuple) and value:
        value = cast(Sequence[object], value)[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _holds(rule: Rule, subject: Subject, model: Model) -> bool:
    return (
        _names(rule, subject)
        and (rule.gqa_min is None or model.n_gqa >= rule.gqa_min)
        and (rule.experts is None or model.n_experts == rule.experts)
        and (rule.experts_min is None or model.n_experts >= rule.experts_min)
        and (rule.imatrix == "any" or (rule.imatrix == "with") == model.has_imatrix)
        and _in_layers(rule.layers, subject)
    )


def _names(rule: Rule, subject: Subject) -> bool:
    if rule.tensor is not None and not re.search(rule.tensor, subject.name):
        return False
    return rule.role in (None, subject.role) or (rule.role == "experts" and subject.is_experts)


def _in_layers(layers: str, subject: Subject) -> bool:
    if layers == "all":
        return True
    if subject.layer is None:
        return False
    if layers == "more":
        return uses_more_bits(subject.layer, subject.n_layers)
    first = layers.removeprefix("first_")
    if first == "8th_counted":
        return subject.n_before < subject.n_layers // 8
    if first.endswith("th"):
        return subject.layer < subject.n_layers // int(first.removesuffix("th"))
    return subject.layer < int(first)
