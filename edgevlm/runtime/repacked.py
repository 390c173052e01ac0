"""Which matrices ggml keeps a second time, interleaved for the processor's instructions.

The types and steps: ggml-cpu/repack.cpp and ggml-cpu/amx of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from edgevlm.ggml_types import tensor_n_bytes
from edgevlm.gguf_file import GGUFFile, GGUFTensor

# Tensor type -> (any of these sets of features, rows must be a multiple of).
_REPACKED: dict[str, tuple[tuple[frozenset[str], int], ...]] = {}


def _repacked(names: str, features: str, step: int) -> None:
    for name in names.split():
        known = _REPACKED.get(name, ())
        _REPACKED[name] = (*known, (frozenset(features.split()), step))


_repacked("Q4_0 Q4_K IQ4_NL MXFP4", "AVX2", 8)
_repacked("Q2_K", "AVX512", 8)
_repacked("Q4_0 Q8_0 Q1_0 IQ4_NL MXFP4", "NEON DOTPROD", 4)
_repacked("Q4_K Q5_K Q6_K", "NEON DOTPROD", 8)
_repacked("Q4_0 Q4_1 Q8_0 Q4_K Q5_K Q6_K IQ4_XS", "AMX_INT8", 32)
_AMX = frozenset({"AMX_INT8"})


def repacked_n_bytes(text: GGUFFile, features: frozenset[str]) -> int:
    """Return the bytes of second copies.

    Args:
        text: header of the text model.
        features: of the processor, by ggml's names.
    """
    names = {tensor.name for tensor in text.tensors}
    n_bytes = 0
    for tensor in text.tensors:
        # The table of tokens is looked up, not multiplied, unless it is the output matrix as well.
        if tensor.name == "token_embd.weight" and "output.weight" in names:
            continue
        if _is_repacked(tensor, features):
            n_bytes += tensor_n_bytes(tensor.shape, tensor.type)
    return n_bytes


def _is_repacked(tensor: GGUFTensor, features: frozenset[str]) -> bool:
    if len(tensor.shape) < 2:
        return False
    # The AMX kernels multiply by one matrix, not by experts.
    unfit = _AMX if len(tensor.shape) > 2 else frozenset[str]()
    return any(
        wanted <= features and not wanted & unfit and tensor.shape[-2] % step == 0
        for wanted, step in _REPACKED.get(tensor.type, ())
    )
