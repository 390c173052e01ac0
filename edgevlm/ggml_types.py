"""The tensor types of ggml and the file types of llama.cpp, as data.

Source: the GGUF specification (ggml docs/gguf.md), gguf-py's table of block sizes and llama.h, as
of llama-cpp-python 0.3.36; `tests/test_ggml_types.py` holds them against the installed ggml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """A tensor type of ggml.

    Attributes:
        name: in capitals, such as "Q4_K".
        id: the number that stands in the file.
        block_size: weights per block; a row must be a multiple of it.
        block_bytes: bytes per block.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int


# (name, id, weights per block, bytes per block); ids 4, 5, 31-33 and 36-38 are no longer in use.
_TYPE_ROWS = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)
TENSOR_TYPES: Mapping[str, TensorType] = MappingProxyType(
    {
        name: TensorType(name=name, id=id_, block_size=size, block_bytes=n_bytes)
        for name, id_, size, n_bytes in _TYPE_ROWS
    }
)
TENSOR_TYPES_BY_ID: Mapping[int, TensorType] = MappingProxyType(
    {type_.id: type_ for type_ in TENSOR_TYPES.values()}
)

# `general.file_type`: what most of a file's tensors are (llama.h, enum llama_ftype).
FILE_TYPES: Mapping[int, str] = MappingProxyType(
    {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        3: "Q4_1",
        7: "Q8_0",
        8: "Q5_0",
        9: "Q5_1",
        10: "Q2_K",
        11: "Q3_K_S",
        12: "Q3_K_M",
        13: "Q3_K_L",
        14: "Q4_K_S",
        15: "Q4_K_M",
        16: "Q5_K_S",
        17: "Q5_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        20: "IQ2_XS",
        21: "Q2_K_S",
        22: "IQ3_XS",
        23: "IQ3_XXS",
        24: "IQ1_S",
        25: "IQ4_NL",
        26: "IQ3_S",
        27: "IQ3_M",
        28: "IQ2_S",
        29: "IQ2_M",
        30: "IQ4_XS",
        31: "IQ1_M",
        32: "BF16",
        36: "TQ1_0",
        37: "TQ2_0",
        38: "MXFP4_MOE",
        39: "NVFP4",
        40: "Q1_0",
        41: "Q2_0",
    }
)


def tensor_n_bytes(shape: tuple[int, ...], type: str) -> int:
    """Return the bytes of a tensor of `shape` (numpy order, rows last) stored as `type`."""
    tensor_type = TENSOR_TYPES[type]
    return prod(shape) // tensor_type.block_size * tensor_type.block_bytes


@dataclass(frozen=True, kw_only=True)
class TypeCount:
    """How much of a file is of one tensor type."""

    n_tensors: int
    n_bytes: int


def type_histogram(tensors: Iterable[tuple[str, int]]) -> dict[str, TypeCount]:
    """Count tensors and bytes per type, the most bytes first, from pairs (type, bytes)."""
    counts: dict[str, TypeCount] = {}
    for type_, n_bytes in tensors:
        old = counts.get(type_, TypeCount(n_tensors=0, n_bytes=0))
        counts[type_] = TypeCount(n_tensors=old.n_tensors + 1, n_bytes=old.n_bytes + n_bytes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1].n_bytes, item[0])))
