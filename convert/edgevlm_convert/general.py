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
    n_values = sum(math.prod(tensor.shape) for tensor in tensors)
    values["general.name"] = string(name)
    values["general.size_label"] = string(size_label(n_values, n_values, 0, 0))
    return values
