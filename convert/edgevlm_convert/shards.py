"""One planned GGUF file becomes several, none much larger than asked.

The keys are llama.cpp's (gguf-py constants.py, Keys.Split); the first file holds all metadata.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm.errors import ConversionError
from edgevlm.files import human_bytes
from edgevlm_convert.metadata import TypedValue, Value
from edgevlm_convert.writer import GGUFPlan, OutputTensor, assemble, padded

# llama.cpp counts files in 16 bits, and its names have five digits.
_MAX_SHARDS = 1000


def split_plan(plan: GGUFPlan, *, max_bytes: int) -> tuple[GGUFPlan, ...]:
    """Return the plans of all files, in order; the plan itself when it is small enough.

    Args:
        plan: of the whole file.
        max_bytes: of tensor data in one file; a tensor that is larger has a file of its own.

    Raises:
        ConversionError: more than 1000 files.
    """
    groups = _groups(plan, max_bytes)
    if len(groups) == 1:
        return (plan,)
    if len(groups) > _MAX_SHARDS:
        raise ConversionError(
            f"{human_bytes(plan.n_data_bytes)} in parts of {human_bytes(max_bytes)} would be"
            f" {len(groups)} files, {_MAX_SHARDS} are the most",
            hint=f"ask for parts of {human_bytes(2 * plan.n_data_bytes // _MAX_SHARDS)} or more",
        )
    n_tensors = len(plan.tensors)
    parts: list[GGUFPlan] = []
    for number, tensors in enumerate(groups):
        split: dict[str, TypedValue] = {
            "split.no": Value("UINT16", number),
            "split.count": Value("UINT16", len(groups)),
            "split.tensors.count": Value("INT32", n_tensors),
        }
        metadata: Mapping[str, TypedValue] = {**plan.metadata, **split} if number == 0 else split
        parts.append(assemble(metadata, tensors, plan.types, plan.sizes))
    return tuple(parts)


def _groups(plan: GGUFPlan, max_bytes: int) -> list[list[OutputTensor]]:
    groups: list[list[OutputTensor]] = [[]]
    n_bytes = 0
    for tensor in plan.tensors:
        size = padded(plan.sizes[tensor.info.name])
        if groups[-1] and n_bytes + size > max_bytes:
            groups.append([])
            n_bytes = 0
        groups[-1].append(tensor)
        n_bytes += size
    return groups
