"""Which tensor type every tensor of a projector (mmproj) gets.

llama.cpp's own quantizer takes these files, with three faults: names `v.blk.N` do not match its
`blk.N`, so that it counts layers wrongly; the layer count reads as 0, so that every layer is one of
"more bits"; a tensor of four dimensions ends the process.

What stays was found in the graphs of tools/mtmd/models, as vendored in llama-cpp-python 0.3.36:
only the first operand of a matrix product may be of blocks. Kernels of convolutions have four
dimensions; tables of positions and queries are added, taken row by row or interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from edgevlm_convert.encoder import TensorInfo

from edgevlm.quantize.plan import TypePlan
from edgevlm.quantize.profile import QuantProfile, Rule
from edgevlm.quantize.tensors import (
    KEPT_PARTS,
    MATRIX_TYPES,
    ROLES_BY_PART,
    Model,
    Subject,
    first_match,
    fitting,
    integer,
    n_dimensions,
    role_by_part,
)

# What joins a tower and its text model: what these names begin with.
_JOINING = ("mm.", "v.deepstack.", "v.proj_blk.", "resampler.", "adapter.")
_ROLES = (*ROLES_BY_PART, ("attn_out.weight", "attn_output"))
_BLOCK_NUMBER = re.compile(r"v\.blk\.(\d+)\.")
# The graph of Gemma 3 transposes its projection, which corrupts memory with any type of blocks.
_TRANSPOSED = "mm.input_projection.weight"
_KEPT_PARTS = (*KEPT_PARTS, "norm", ".ln", "class_embd", "_embd", "embed", "query", ".attn.pos_")
# Towers for sound: their kernels and tables have names of their own, and no image comes near them.
_SOUND = ("a.", "mm.a.")
# llama.cpp's fallbacks for rows that a type's block does not divide.
FALLBACK: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
        **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
        **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
        **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    }
)


def is_plain(profile: QuantProfile) -> bool:
    """Whether a profile makes of a projector what the name of its type alone stands for."""
    own, usual = profile.mmproj, FALLBACK.get(profile.mmproj.type)
    return not own.rules and profile.fallback.get(own.type, usual) == usual


def plan_projector(
    type: str,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    *,
    profile: QuantProfile | None = None,
) -> TypePlan:
    """Return the type of every tensor of a projector by name.

    Matrices become `type`, or what a rule says, or its fallback where their rows do not divide.
    Patch embeddings, positions, norms and biases stay as they were, and so does a matrix whose rows
    no block divides.

    Args:
        type: "F16", "BF16", "Q8_0" ...
        tensors: all tensors of the file, in any order.
        metadata: of the file.
        profile: its `[mmproj]` rules hold where `type` is its own projector type.
    """
    types = {tensor.name: tensor.type for tensor in tensors}
    rules = _rules(type, tensors, metadata, profile)
    lengths = {tensor.name: tensor.shape[-1] for tensor in tensors if tensor.name in rules}
    for name, rule in rules.items():
        wanted = type if rule is None else rule.type
        fallback = (rule and rule.fallback) or (profile and profile.fallback.get(wanted))
        fallback = fallback or FALLBACK.get(wanted)
        types[name] = fitting(wanted, fallback, lengths[name]) or types[name]
    used = frozenset(rule for rule in rules.values() if rule is not None)
    return TypePlan(types=types, used=used)


def _rules(
    type: str,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    profile: QuantProfile | None,
) -> dict[str, Rule | None]:
    """Return the rule that decides each matrix by name, None where none does."""
    rules = profile.mmproj.rules if profile is not None and profile.mmproj.type == type else ()
    n_layers = integer(metadata, "clip.vision.block_count") or 0
    model = Model(n_layers=n_layers, n_experts=0, n_gqa=1, has_imatrix=False)
    is_transposed = _kind(metadata) in ("gemma3", "")
    decided: dict[str, Rule | None] = {}
    for tensor in tensors:
        if not _is_matrix(tensor) or (is_transposed and tensor.name == _TRANSPOSED):
            continue
        number = _BLOCK_NUMBER.match(tensor.name)
        subject = Subject(
            name=tensor.name,
            role=_role(tensor.name),
            layer=int(number.group(1)) if number else None,
            n_layers=n_layers,
        )
        decided[tensor.name] = first_match(rules, subject, model)
    return decided


def _role(name: str) -> str:
    return "projector" if name.startswith(_JOINING) else role_by_part(_ROLES, name)


def _kind(metadata: Mapping[str, object]) -> str:
    keys = ("clip.projector_type", "clip.vision.projector_type")
    values = (getattr(metadata.get(key), "value", None) for key in keys)
    return next((value for value in values if isinstance(value, str)), "")


def _is_matrix(tensor: TensorInfo) -> bool:
    return (
        tensor.type in MATRIX_TYPES
        and n_dimensions(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and not tensor.name.startswith(_SOUND)
        and not any(part in tensor.name for part in _KEPT_PARTS)
    )
