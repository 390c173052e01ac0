"""Typed GGUF metadata values and their bytes.

Facts from the GGUF specification (ggml, docs/gguf.md): little-endian; a string is a uint64 length
and UTF-8 bytes; an array is its element type, a uint64 length and the elements; a bool is one byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

_TYPE_IDS = {
    "UINT8": 0,
    "INT8": 1,
    "UINT16": 2,
    "INT16": 3,
    "UINT32": 4,
    "INT32": 5,
    "FLOAT32": 6,
    "BOOL": 7,
    "STRING": 8,
    "ARRAY": 9,
    "UINT64": 10,
    "INT64": 11,
    "FLOAT64": 12,
}
_FORMATS = {
    "UINT8": "<B",
    "INT8": "<b",
    "UINT16": "<H",
    "INT16": "<h",
    "UINT32": "<I",
    "INT32": "<i",
    "FLOAT32": "<f",
    "BOOL": "<?",
    "UINT64": "<Q",
    "INT64": "<q",
    "FLOAT64": "<d",
}
_DTYPES = {
    "UINT8": "<u1",
    "INT8": "<i1",
    "UINT16": "<u2",
    "INT16": "<i2",
    "UINT32": "<u4",
    "INT32": "<i4",
    "FLOAT32": "<f4",
    "BOOL": "?",
    "UINT64": "<u8",
    "INT64": "<i8",
    "FLOAT64": "<f8",
}
_ARRAY = "ARRAY:"


class TypedValue(Protocol):
    """A metadata value that knows its GGUF type, such as "UINT32", "STRING" or "ARRAY:INT32"."""

    @property
    def type(self) -> str:
        """Name of the GGUF value type in capitals; arrays as `ARRAY:` and the element type."""
        ...

    @property
    def value(self) -> object:
        """The value: int, float, bool, str, or a sequence of them (a numpy array counts)."""
        ...


@dataclass(frozen=True)
class Value:
    """A metadata value of our own making."""

    type: str
    value: object


def u32(value: int) -> Value:
    """Return an unsigned 32-bit integer."""
    return Value("UINT32", value)


def i32(value: int) -> Value:
    """Return a signed 32-bit integer."""
    return Value("INT32", value)


def u64(value: int) -> Value:
    """Return an unsigned 64-bit integer."""
    return Value("UINT64", value)


def f32(value: float) -> Value:
    """Return a 32-bit float."""
    return Value("FLOAT32", value)


def boolean(value: bool) -> Value:
    """Return a truth value."""
    return Value("BOOL", value)


def string(value: str) -> Value:
    """Return a string."""
    return Value("STRING", value)


def array(element_type: str, values: Iterable[object]) -> Value:
    """Return an array of `element_type` ("STRING", "INT32", "FLOAT32", "BOOL" ...)."""
    return Value(_ARRAY + element_type, tuple(values))


def pack_string(text: str) -> bytes:
    """Return a GGUF string: its length in bytes, then UTF-8."""
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def pack_value(value: TypedValue) -> bytes:
    """Return the type and the bytes of one value, as they stand after the key."""
    kind = value.type
    if not kind.startswith(_ARRAY):
        return struct.pack("<I", _TYPE_IDS[kind]) + _pack_scalar(kind, value.value)
    element = kind.removeprefix(_ARRAY)
    items = cast(Sequence[object], value.value)
    head = struct.pack("<IIQ", _TYPE_IDS["ARRAY"], _TYPE_IDS[element], len(items))
    if element == "STRING":
        return head + b"".join(pack_string(str(item)) for item in items)
    if element.startswith(_ARRAY):
        raise ValueError(f"arrays of arrays are not written: {kind}")
    return head + np.asarray(items, dtype=_DTYPES[element]).tobytes()


def _pack_scalar(kind: str, value: object) -> bytes:
    if kind == "STRING":
        return pack_string(cast(str, value))
    return struct.pack(_FORMATS[kind], value)
