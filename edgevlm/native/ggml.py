"""Tensor types, row sizes and row kernels of libggml-base, and the devices of libggml.

ggml checks its arguments by aborting the process (or not at all: `ggml_row_size` rounds down
silently), so every argument is checked here first. Signatures: ggml.h, ggml-backend.h of
ggml 0.25.3.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import QuantizationError
from edgevlm.native.library import load_library

_MAX_TYPES = 256
_FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
# The largest F16: blocks keep their scales in it. Beyond, kernels write infinities, and some abort.
_MAX_MAGNITUDE = 65504.0
# Importance of 2^14 beside values of 65504: sums and their squares stay finite in every kernel.
_MAX_IMPORTANCE_EXPONENT = 14
# Types of `ggml_quantize_chunk` with no case for them: it aborts. They hold activations or indices.
_NOT_FOR_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
# void to_float(const void * blocks, float * values, int64_t n_values)
_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """ggml.h, struct ggml_type_traits."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """One ggml tensor type.

    Attributes:
        name: in capitals, such as "Q4_K".
        id: its number in GGUF files.
        block_size: values per block; a row holds whole blocks.
        block_n_bytes: bytes per block.
        is_quantized: false for floats and integers.
        requires_imatrix: the type cannot be made without an importance matrix.
    """

    name: str
    id: int
    block_size: int
    block_n_bytes: int
    is_quantized: bool
    requires_imatrix: bool


@cache
def _base() -> Any:
    base: Any = load_library().ggml_base
    i64, size_t, int_, void_p = ctypes.c_int64, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    for name, argtypes, restype in (
        ("ggml_type_name", [int_], ctypes.c_char_p),
        ("ggml_blck_size", [int_], i64),
        ("ggml_type_size", [int_], size_t),
        ("ggml_is_quantized", [int_], ctypes.c_bool),
        ("ggml_quantize_requires_imatrix", [int_], ctypes.c_bool),
        ("ggml_quantize_chunk", [int_, void_p, void_p, i64, i64, i64, void_p], size_t),
        ("ggml_get_type_traits", [int_], ctypes.POINTER(_TypeTraits)),
    ):
        function = getattr(base, name)
        function.argtypes = argtypes
        function.restype = restype
    return base


@cache
def tensor_types() -> dict[str, TensorType]:
    """Return every tensor type that the installed ggml has, by name."""
    base = _base()
    found: dict[str, TensorType] = {}
    for number in range(_type_count()):
        block_size = base.ggml_blck_size(number)
        if block_size <= 0:  # a number whose type was removed
            continue
        name = base.ggml_type_name(number).decode().upper()
        found[name] = TensorType(
            name=name,
            id=number,
            block_size=block_size,
            block_n_bytes=base.ggml_type_size(number),
            is_quantized=base.ggml_is_quantized(number),
            requires_imatrix=base.ggml_quantize_requires_imatrix(number),
        )
    return found


def _type_count() -> int:
    # The bindings carry GGML_TYPE_COUNT of the library they were built with. Reading beyond the
    # library's table of types is undefined, so no number is probed that the header does not have.
    count = int(load_library().llama.GGML_TYPE_COUNT)
    return min(count, _MAX_TYPES)


def _type(name: str) -> TensorType:
    try:
        return tensor_types()[name]
    except KeyError:
        known = ", ".join(sorted(tensor_types()))
        raise QuantizationError(
            f"tensor type {name!r} is unknown to the installed ggml", hint=f"known: {known}"
        ) from None


def type_id(name: str) -> int:
    """Return the number of a tensor type in GGUF files: "Q4_K" -> 12."""
    return _type(name).id


def type_name(number: int) -> str:
    """Return the name of a tensor type by its number in GGUF files: 12 -> "Q4_K"."""
    for tensor_type in tensor_types().values():
        if tensor_type.id == number:
            return tensor_type.name
    raise QuantizationError(
        f"tensor type {number} is unknown to the installed ggml",
        hint="the file may need a newer llama-cpp-python",
    )


def block_size(type: str) -> int:
    """Return how many values a block of `type` holds (1 for floats)."""
    return _type(type).block_size


def requires_imatrix(type: str) -> bool:
    """Return whether rows of `type` cannot be made without an importance matrix."""
    return _type(type).requires_imatrix


def row_n_bytes(type: str, n_per_row: int) -> int:
    """Return the size of one row of `n_per_row` values in `type`.

    Raises:
        QuantizationError: the blocks of `type` do not divide the row.
    """
    tensor_type = _type(type)
    if n_per_row <= 0 or n_per_row % tensor_type.block_size:
        raise QuantizationError(
            f"a row of {n_per_row} values is no whole number of {type} blocks"
            f" of {tensor_type.block_size}",
            hint="choose a type whose block divides the row, such as Q8_0 (32)",
        )
    return n_per_row // tensor_type.block_size * tensor_type.block_n_bytes


def quantize_rows(
    rows: NDArray[np.float32], type: str, imatrix: NDArray[np.float32] | None = None
) -> bytes:
    """Encode float32 rows as blocks of `type` with ggml's own kernels. Thread-safe; drops the GIL.

    Args:
        rows: [n_rows, n_per_row], float32, C-contiguous.
        type: a tensor type such as "Q4_K"; F32, F16 and BF16 are allowed.
        imatrix: importance per input channel, [n_per_row] float32, or None.

    Raises:
        QuantizationError: blocks do not divide the row, an array has the wrong form, a value is not
            finite or beyond 65504, or the type needs an imatrix that was not given.
    """
    _check_rows(rows, type)
    imatrix = _checked_imatrix(imatrix, type, rows.shape[1])
    n_rows, n_per_row = rows.shape
    n_bytes = n_rows * row_n_bytes(type, n_per_row)
    if type == "F32":
        return rows.tobytes()
    out = np.empty(n_bytes, dtype=np.uint8)
    importance = None if imatrix is None else imatrix.ctypes.data
    written = _base().ggml_quantize_chunk(
        type_id(type), rows.ctypes.data, out.ctypes.data, 0, n_rows, n_per_row, importance
    )
    if written != n_bytes:
        raise QuantizationError(f"ggml wrote {written} bytes of {type}, {n_bytes} were due")
    return out.tobytes()


def dequantize_rows(data: bytes, type: str, n_per_row: int) -> NDArray[np.float32]:
    """Return the values of blocks as float32 [n_rows, n_per_row], with ggml's own kernel.

    Thread-safe; drops the GIL.

    Args:
        data: whole rows of `type`.
        type: a quantized tensor type, such as "Q8_0".
        n_per_row: values in a row.

    Raises:
        QuantizationError: blocks do not divide the row, `data` is no whole number of rows, or the
            installed ggml cannot read the type.
    """
    n_row_bytes = row_n_bytes(type, n_per_row)
    n_rows, rest = divmod(len(data), n_row_bytes)
    to_float = _to_float(type)
    if rest or to_float is None:
        fault = f"{len(data)} bytes are no whole rows" if rest else "the installed ggml cannot"
        raise QuantizationError(f"cannot read {type} as floats: {fault}")
    values = np.empty((n_rows, n_per_row), dtype=np.float32)
    to_float(data, values.ctypes.data, values.size)
    return values


@cache
def _to_float(type: str) -> Any:
    traits = _base().ggml_get_type_traits(type_id(type)).contents
    # Of a type for activations this may be absent; another layout would show in the sizes.
    if not traits.to_float or traits.type_size != _type(type).block_n_bytes:
        return None
    return _ToFloat(traits.to_float)


def _check_rows(rows: NDArray[np.float32], type: str) -> None:
    if type in _NOT_FOR_WEIGHTS:
        raise QuantizationError(f"{type} is no type for weights", hint="see `edgevlm profiles`")
    if rows.ndim != 2 or rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise QuantizationError(
            f"rows must be a contiguous float32 matrix, got {rows.dtype} of shape {rows.shape}"
        )
    if type in _FLOAT_TYPES or not rows.size:
        return
    # min and max carry NaN along: two passes without a temporary array.
    least, most = float(rows.min()), float(rows.max())
    if not (least >= -_MAX_MAGNITUDE and most <= _MAX_MAGNITUDE):
        raise QuantizationError(
            f"values from {least:g} to {most:g} cannot be stored as {type}",
            hint="the weights are broken, or this tensor must stay F32 or BF16",
        )


def _checked_imatrix(
    imatrix: NDArray[np.float32] | None, type: str, n_per_row: int
) -> NDArray[np.float32] | None:
    """Return the importance as ggml can take it."""
    if imatrix is None:
        if requires_imatrix(type):
            raise QuantizationError(
                f"{type} needs an importance matrix",
                hint="make one with `edgevlm calibrate`, then pass `--imatrix FILE`",
            )
        return None
    if (
        imatrix.shape != (n_per_row,)
        or imatrix.dtype != np.float32
        or not imatrix.flags.c_contiguous
    ):
        raise QuantizationError(
            f"the importance matrix must be {n_per_row} contiguous float32 values, got"
            f" {imatrix.dtype} of shape {imatrix.shape}",
            hint="it was made for another model",
        )
    if not np.isfinite(imatrix).all() or (imatrix < 0).any():
        raise QuantizationError(
            "the importance matrix holds negative or non-finite values",
            hint="make it again with `edgevlm calibrate`",
        )
    # Sums of IQ types overflow for large values, and ggml then aborts the process. Only ratios
    # count, so a power of two changes no bit of what does not overflow.
    excess = int(np.frexp(imatrix.max())[1]) - _MAX_IMPORTANCE_EXPONENT
    return np.ldexp(imatrix, -excess) if excess > 0 else imatrix
