"""Which tensor type every tensor of a projector (mmproj) gets.

llama.cpp's own quantizer counts layers wrongly there: names `v.blk.N` do not match its `blk.N`, and
the layer count reads as 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgevlm_convert.encoder import TensorInfo

from edgevlm.ggml_types import TENSOR_TYPES
from edgevlm.quantize.plan import TypePlan
from edgevlm.quantize.profile import QuantProfile, Rule
from edgevlm.quantize.tensors import (
    FLOATS,
    KEPT_PARTS,
    ROLES_BY_PART,
    Model,
    Subject,
    first_match,
    integer,
    n_dimensions,
    role_by_part,
)

_ROLES = (*ROLES_BY_PART, ("attn_out.weight", "attn_output"))
_BLOCK_NUMBER = re.compile(r"[a-z]+\.blk\.(\d+)\.")
# The graph of Gemma 3 transposes its projection, which corrupts memory with any type of blocks.
_TRANSPOSED = "mm.input_projection.weight"
_KEPT_PARTS = (*KEPT_PARTS, "norm", ".ln", "class_embd", "_embd", "embed", _TRANSPOSED)


def plan_projector(
    type: str,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    *,
    profile: QuantProfile | None = None,
) -> TypePlan:
    """Return the type of every tensor of a projector by name.

    Matrices become `type`. Patch embeddings, positions, norms and biases stay as they were, and so
    does a matrix whose rows the type's block does not divide.

    Args:
        type: "F16", "BF16", "Q8_0" ...
        tensors: all tensors of the file, in any order.
        metadata: of the file.
        profile: its `[mmproj]` rules hold where `type` is its own projector type.
    """
    rules = profile.mmproj.rules if profile is not None and profile.mmproj.type == type else ()
    n_layers = integer(metadata, "clip.vision.block_count") or 0
    model = Model(n_layers=n_layers, n_experts=0, n_gqa=1, has_imatrix=False)
    types: dict[str, str] = {}
    used: set[Rule] = set()
    for tensor in tensors:
        types[tensor.name] = tensor.type
        if not _is_matrix(tensor):
            continue
        number = _BLOCK_NUMBER.match(tensor.name)
        subject = Subject(
            name=tensor.name,
            role=role_by_part(_ROLES, tensor.name),
            layer=int(number.group(1)) if number else None,
            n_layers=n_layers,
        )
        rule = first_match(rules, subject, model)
        if rule is not None:
            used.add(rule)
        wanted = type if rule is None else rule.type
        types[tensor.name] = _fitting(profile, wanted, tensor.shape[-1]) or tensor.type
    return TypePlan(types=types, used=frozenset(used))


def _fitting(profile: QuantProfile | None, wanted: str, row_length: int) -> str | None:
    if row_length % TENSOR_TYPES[wanted].block_size and profile is not None:
        wanted = profile.fallback.get(wanted, wanted)
    return None if row_length % TENSOR_TYPES[wanted].block_size else wanted


def _is_matrix(tensor: TensorInfo) -> bool:
    return (
        tensor.type in FLOATS
        and n_dimensions(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and not any(part in tensor.name for part in _KEPT_PARTS)
    )
