"""Number formats that a checkpoint stores and GGUF does not: 8-bit floats, integers, float64.

E4M3 and E5M2 as the OCP 8-bit floating point specification defines them (E4M3: bias 7, no infinity,
0x7f is NaN), E8M0 as the OCP microscaling formats one (a power of two, bias 127, 0xff is NaN).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ConversionError
from edgevlm_convert.json_file import quoted
from edgevlm_convert.safetensors import SourceTensor, widen

_FLOATS = ("F32", "F16", "BF16")
_INTEGERS = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "I64": "<i8"}


def decode(tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Return elements [start, stop) of the flattened tensor as float32.

    Raises:
        ConversionError: a NaN, an Inf, a number beyond float32, or a dtype that holds no numbers.
    """
    if tensor.dtype in _FLOATS:
        return widen(tensor.bits(start, stop), tensor.dtype)
    raw = tensor.raw(start, stop)
    if tensor.dtype in _INTEGERS:
        return np.frombuffer(raw, dtype=_INTEGERS[tensor.dtype]).astype(np.float32)
    if tensor.dtype == "F64":
        with np.errstate(over="ignore"):
            values = np.frombuffer(raw, dtype="<f8").astype(np.float32)
    elif tensor.dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0"):
        values = _table(tensor.dtype)[np.frombuffer(raw, dtype=np.uint8)]
    else:
        raise ConversionError(
            f"tensor {quoted(tensor.name)} has dtype {tensor.dtype}, which cannot be converted",
            hint="use the original 16-bit checkpoint",
        )
    if not np.isfinite(values).all():
        where = start + int(np.argmin(np.isfinite(values)))
        raise ConversionError(
            f"tensor {quoted(tensor.name)} holds a number at element {where} that is none, or is"
            " beyond float32",
            hint="the checkpoint is damaged or its training diverged; use another revision",
        )
    return values


def integers(tensor: SourceTensor, start: int, stop: int) -> NDArray[np.signedinteger[Any]]:
    """Return elements [start, stop) of a tensor of integers.

    Raises:
        ConversionError: it holds none.
    """
    if tensor.dtype not in ("I32", "I64"):
        raise ConversionError(
            f"tensor {quoted(tensor.name)} has dtype {tensor.dtype}, expected integers",
            hint="the checkpoint is damaged; download it again",
        )
    return np.frombuffer(tensor.raw(start, stop), dtype=_INTEGERS[tensor.dtype])


@cache
def _table(dtype: str) -> NDArray[np.float32]:
    """Return the value of each of the 256 bytes."""
    byte = np.arange(256)
    if dtype == "F8_E8M0":
        values = np.ldexp(1.0, byte - 127)
        values[255] = np.nan
        return values.astype(np.float32)
    n_mantissa, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    sign = np.where(byte & 0x80, -1.0, 1.0)
    exponent = (byte & 0x7F) >> n_mantissa
    fraction = (byte & ((1 << n_mantissa) - 1)) / (1 << n_mantissa)
    normal = np.ldexp(1.0 + fraction, exponent - bias)
    subnormal = np.ldexp(fraction, 1 - bias)
    values = sign * np.where(exponent, normal, subnormal)
    if dtype == "F8_E4M3":
        values[[0x7F, 0xFF]] = np.nan
    else:
        top = exponent == 31
        values[top & (fraction == 0)] = sign[top & (fraction == 0)] * np.inf
        values[top & (fraction != 0)] = np.nan
    return values.astype(np.float32)
