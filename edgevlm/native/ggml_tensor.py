"""A `ggml_tensor` in a callback of ggml: what it is, what it reads, its values.

Layout: struct ggml_tensor of ggml.h, ggml 0.25.3. Nothing in its interface tells where a field
stands, so a tensor that we make ourselves is read back before any other is.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.library import load_library

_F32, _I32 = 0, 26  # enum ggml_type
_N_DIMENSIONS, _N_SOURCES, _N_NAME = 4, 10, 64
# sizeof(ggml_object) + sizeof(ggml_tensor), which `ggml_tensor_overhead` returns.
_OVERHEAD = 32 + 336


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _N_DIMENSIONS),
        ("nb", ctypes.c_size_t * _N_DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _N_SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _N_NAME),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


class _InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


@cache
def _base() -> Any:
    base: Any = load_library().ggml_base
    i64, size_t, int_, void_p = ctypes.c_int64, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    for name, argtypes, restype in (
        ("ggml_tensor_overhead", [], size_t),
        ("ggml_init", [_InitParams], void_p),
        ("ggml_free", [void_p], None),
        ("ggml_new_tensor_4d", [void_p, int_, i64, i64, i64, i64], void_p),
        ("ggml_set_name", [void_p, ctypes.c_char_p], void_p),
        ("ggml_cont", [void_p, void_p], void_p),
        ("ggml_op_name", [int_], ctypes.c_char_p),
        ("ggml_backend_tensor_get", [void_p, void_p, size_t, size_t], None),
        ("ggml_backend_tensor_set", [void_p, void_p, size_t, size_t], None),
    ):
        function = getattr(base, name)
        function.argtypes = argtypes
        function.restype = restype
    return base


@cache
def layout_fault() -> str:
    """Return why tensors of the installed ggml cannot be read; "" when they can."""
    base = _base()
    overhead = int(base.ggml_tensor_overhead())
    if overhead != _OVERHEAD:
        return f"a tensor of the installed ggml takes {overhead} bytes, {_OVERHEAD} are known"
    context = base.ggml_init(_InitParams(mem_size=8 * _OVERHEAD, mem_buffer=None, no_alloc=True))
    try:
        made = base.ggml_new_tensor_4d(context, _F32, 2, 3, 5, 7)
        base.ggml_set_name(made, b"made here")
        node = base.ggml_cont(context, made)
        seen = _Tensor.from_address(made)
        as_known = (
            tensor_sources(node) == (made,)
            and tensor_name(made) == "made here"
            and (seen.type, seen.view_src, seen.data) == (_F32, None, None)
            and tuple(seen.ne) == (2, 3, 5, 7)
            and tuple(seen.nb) == (4, 8, 24, 120)
        )
    finally:
        base.ggml_free(context)
    return "" if as_known else "the fields of a tensor of the installed ggml have moved"


def tensor_name(address: int) -> str:
    """Return the name that the graph's builder gave a tensor.

    A copy on another device is called `device#name#number` (ggml-backend.cpp).
    """
    name = bytes(_Tensor.from_address(address).name).decode("utf-8", "replace")
    parts = name.split("#")
    return parts[1] if len(parts) == 3 else name


def tensor_sources(address: int) -> tuple[int, ...]:
    """Return the tensors that a node reads."""
    return tuple(source for source in _Tensor.from_address(address).src if source)


def tensor_source(address: int, index: int) -> int | None:
    """Return one of the tensors that a node reads, by its place; None: it reads none there."""
    return _Tensor.from_address(address).src[index]


def viewed(address: int) -> int | None:
    """Return the tensor that another is a view of; None: it is none."""
    return _Tensor.from_address(address).view_src or None


def weight_shape(address: int) -> tuple[int, ...]:
    """Return all four dimensions of a tensor, slowest first."""
    return tuple(int(size) for size in _Tensor.from_address(address).ne[::-1])


def operation(address: int) -> str:
    """Return the name of a node's operation, such as "MUL_MAT"."""
    number = int(_Tensor.from_address(address).op)
    return str(_base().ggml_op_name(number).decode())


def operation_code(address: int) -> int:
    """Return the number of a node's operation, which costs less than its name."""
    return int(_Tensor.from_address(address).op)


@cache
def code_of(name: str) -> int:
    """Return the number of an operation that ggml has, such as "ROPE"."""
    code = 0
    while str(_base().ggml_op_name(code).decode()) != name:
        code += 1
    return code


def read_rows(
    address: int, kind: type[np.float32] | type[np.int32]
) -> NDArray[np.float32] | NDArray[np.int32] | None:
    """Copy the values of a tensor that may have gaps between rows; None: another type, or no rows.

    The result has all four dimensions of ggml, slowest first; its rows are contiguous.
    """
    tensor = _Tensor.from_address(address)
    item = np.dtype(kind).itemsize
    sizes, strides = tuple(tensor.ne[::-1]), tuple(tensor.nb[::-1])
    is_known = tensor.type == (_F32 if kind is np.float32 else _I32) and strides[-1] == item
    if not is_known or not tensor.buffer or not tensor.data or 0 in sizes:
        return None
    n_bytes = item + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    raw = np.empty(n_bytes, dtype=np.uint8)
    _base().ggml_backend_tensor_get(address, raw.ctypes.data, 0, n_bytes)
    return np.ndarray(sizes, dtype=kind, buffer=raw, strides=strides)


def read_f32(address: int) -> NDArray[np.float32] | None:
    """Copy the values of a tensor, slowest dimension first; None: not F32, strided or not there.

    The result has all four dimensions of ggml.
    """
    tensor = _Tensor.from_address(address)
    shape = tuple(int(size) for size in tensor.ne[::-1])
    values = np.empty(shape, dtype=np.float32)
    is_dense = tuple(tensor.nb[::-1]) == values.strides
    # ggml aborts the process at a tensor without memory.
    if tensor.type != _F32 or not is_dense or not tensor.buffer or not tensor.data:
        return None
    _base().ggml_backend_tensor_get(address, values.ctypes.data, 0, values.nbytes)
    return values


def write_i32(address: int, values: NDArray[np.int32]) -> bool:
    """Write a tensor of whole numbers in one dimension; False: it is another kind of tensor.

    Args:
        address: of the tensor.
        values: [n] int32, as many as it has.
    """
    tensor = _Tensor.from_address(address)
    is_list = tuple(tensor.ne) == (len(values), 1, 1, 1) and tensor.nb[0] == values.itemsize
    if tensor.type != _I32 or not is_list or not tensor.buffer or not tensor.data:
        return False
    _base().ggml_backend_tensor_set(address, values.ctypes.data, 0, values.nbytes)
    return True


def write_f32(address: int, values: NDArray[np.float32]) -> bool:
    """Write a dense tensor; False: it is another kind of tensor, or of another shape.

    Args:
        address: of the tensor.
        values: float32 of all four dimensions of ggml, slowest first.
    """
    tensor = _Tensor.from_address(address)
    is_same = tuple(tensor.ne[::-1]) == values.shape and tuple(tensor.nb[::-1]) == values.strides
    if tensor.type != _F32 or not is_same or not tensor.buffer or not tensor.data:
        return False
    _base().ggml_backend_tensor_set(address, values.ctypes.data, 0, values.nbytes)
    return True


def parameter(address: int, index: int) -> int:
    """Return one of a node's parameters."""
    return int(_Tensor.from_address(address).op_params[index])


def clear_parameter_bits(address: int, index: int, bits: int) -> None:
    """Clear bits of one of a node's parameters, before ggml computes the node."""
    parameters = _Tensor.from_address(address).op_params
    parameters[index] &= ~bits


def n_items(address: int) -> int:
    """Return the length of a tensor's fastest dimension."""
    return int(_Tensor.from_address(address).ne[0])
