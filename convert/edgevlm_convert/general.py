"""The `general.*` keys of a GGUF file, those that say what to sample with among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gguf import size_label

from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.metadata import Value, f32, i32, string
from edgevlm_convert.rules import Mapped

# generation_config.json's names and ours, in llama.cpp's order (gguf-py metadata.py); a second name
# is tried when the first is missing. Only those that transformers writes.
_SAMPLING: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("top_k", ("top_k",), True),
    ("top_p", ("top_p",), False),
    ("min_p", ("min_p",), False),
    ("temp", ("temperature",), False),
    ("penalty_repeat", ("penalty_repeat", "repetition_penalty"), False),
)


def general_metadata(
    checkpoint: Checkpoint, *, architecture: str, kind: str, name: str, tensors: Sequence[Mapped]
) -> dict[str, Value]:
    """Return the keys that open a file.

    Args:
        checkpoint: for generation_config.json.
        architecture: `general.architecture`.
        kind: `general.type`: "model" or "mmproj".
        name: `general.name`.
        tensors: of the file, counted for `general.size_label`.

    Raises:
        CheckpointError: generation_config.json holds a sampling value of wrong type.
    """
    values = {"general.architecture": string(architecture), "general.type": string(kind)}
    generation = checkpoint.optional_json("generation_config.json")
    for key, sources, is_integer in _SAMPLING if generation else ():
        source = next((entry for entry in sources if generation and generation.has(entry)), None)
        if generation is None or source is None:
            continue
        if is_integer:
            number = generation.integer(source, low=0, high=(1 << 31) - 1)
            values[f"general.sampling.{key}"] = i32(number)
        else:
            values[f"general.sampling.{key}"] = f32(generation.number(source, low=0, high=1e6))
    values["general.name"] = string(name)
    values["general.size_label"] = string(_size_label(tensors))
    return values


def _size_label(tensors: Sequence[Mapped]) -> str:
    """Return "2.1B", or "128x1.8B" where there are experts: all else and one expert of a layer."""
    n_values = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
    stacks = [tensor for tensor in tensors if "_exps." in tensor.name]
    n_experts = stacks[0].shape[0] if stacks else 0
    n_of_one = sum(n_values[stack.name] // n_experts for stack in stacks)
    n_total = sum(n_values.values())
    n_shared = n_total - sum(n_values[stack.name] for stack in stacks)
    return size_label(n_total, n_shared, n_of_one, n_experts)
