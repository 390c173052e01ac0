"""Which tensor type every tensor of a text model gets, as llama.cpp's own quantizer decides.

Facts: llama.cpp src/llama-quant.cpp as vendored in llama-cpp-python 0.3.36. What is kept as it was,
roles, the order in which attention and feed-forward tensors are counted, tied outputs and fallbacks
are equal; its exceptions for models that no edge machine runs (Falcon, GLM-5, 70 B by layer count)
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevlm_convert.encoder import TensorInfo

from edgevlm.quantize.profile import QuantProfile, Rule
from edgevlm.quantize.tensors import (
    Subject,
    block_number,
    first_match,
    fitting,
    is_text_matrix,
    name_order,
    read_model,
    text_role,
)

_LAST_RESORT = "F16"
_COUNTED = {"attn_v": "attn_v", "attn_qkv": "attn_v", "ffn_down": "ffn_down"}


@dataclass(frozen=True, kw_only=True)
class TypePlan:
    """The types of a file's tensors.

    Attributes:
        types: by tensor name.
        used: the rules that decided one at least.
    """

    types: Mapping[str, str]
    used: frozenset[Rule]


def plan_text(
    profile: QuantProfile,
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    *,
    has_imatrix: bool = False,
) -> TypePlan:
    """Return the type of every tensor of a text model.

    Args:
        profile: the level.
        tensors: all tensors of the file, in any order.
        metadata: at least `general.architecture` and `<arch>.block_count`, each with a `.value`.
        has_imatrix: whether an importance matrix will be used.

    Raises:
        QuantizationError: the metadata lacks what the rules need.
    """
    model = read_model(metadata, has_imatrix=has_imatrix)
    types: dict[str, str] = {}
    used: set[Rule] = set()
    for tensor, subject in _subjects(tensors, model.n_layers, model.n_experts):
        if subject is None:
            types[tensor.name] = tensor.type
            continue
        rule = first_match(profile.rules, subject, model)
        if rule is not None:
            used.add(rule)
        wanted = profile.type if rule is None else rule.type
        fallback = (rule and rule.fallback) or profile.fallback.get(wanted)
        types[tensor.name] = fitting(wanted, fallback, tensor.shape[-1]) or _LAST_RESORT
    return TypePlan(types=types, used=frozenset(used))


def _subjects(
    tensors: Sequence[TensorInfo], n_layers: int, n_experts: int
) -> list[tuple[TensorInfo, Subject | None]]:
    """Return every tensor as rules see it, in llama.cpp's order; None: it is never quantized."""
    is_tied = all(tensor.name != "output.weight" for tensor in tensors)
    roles = {tensor.name: text_role(tensor.name, is_tied=is_tied) for tensor in tensors}
    n_attn_v = sum(_COUNTED.get(role) == "attn_v" for role in roles.values())
    counts = {"attn_v": n_attn_v, "ffn_down": n_layers}
    seen = dict.fromkeys(counts, 0)
    subjects: list[tuple[TensorInfo, Subject | None]] = []
    for tensor in sorted(tensors, key=lambda tensor: name_order(tensor.name)):
        if not is_text_matrix(tensor):
            subjects.append((tensor, None))
            continue
        layer, n_among, n_before = block_number(tensor.name), n_layers, 0
        counter = _COUNTED.get(roles[tensor.name])
        if counter is not None:
            n_before = seen[counter]
            seen[counter] += 1
            # With experts llama.cpp takes the number from the name, for they may be unordered.
            if counter == "attn_v" or n_experts <= 1:
                layer, n_among = n_before, counts[counter]
        subject = Subject(
            name=tensor.name,
            role=roles[tensor.name],
            is_experts="_exps" in tensor.name,
            layer=layer,
            n_layers=n_among,
            n_before=n_before,
        )
        subjects.append((tensor, subject))
    return subjects
