"""Qwen4-Exp's text model: numbers on which llama.cpp would end the process.

Assertions of src/llama-memory-hybrid-idx.cpp (tokens of a block) and of ggml (rotated channels of
the indexer's heads), as vendored in llama-cpp-python 0.3.36; what else does not fit is an error of
its loader.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers

_NAME = "qwen4exp"
_MAX_RATIO = 64


def check_qwen4_text(file: GGUFFile) -> None:
    """Check the indexer of a text model of this architecture; any other is not looked at.

    Raises:
        GGUFError: blocks of too many tokens, or heads smaller than what is rotated.
    """
    if file.architecture != _NAME:
        return
    key = f"{_NAME}.attention.compress_ratios"
    ratios = numbers(file, key)
    if any(not 0 <= ratio <= _MAX_RATIO for ratio in ratios):
        raise GGUFError(
            f"`{file.path}` has {key} {ratios[:8]}, llama.cpp takes 0 to {_MAX_RATIO}",
            hint="convert the model again",
        )
    rotated = max(numbers(file, f"{_NAME}.rope.dimension_count"), default=0)
    head = max(numbers(file, f"{_NAME}.attention.indexer.key_length"), default=0)
    if rotated > head or rotated % 2:
        raise GGUFError(
            f"`{file.path}` rotates {rotated} channels of the indexer's heads of {head}",
            hint="convert the model again",
        )
