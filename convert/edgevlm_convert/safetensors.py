"""Read safetensors files slab by slab with pread, trusting nothing in their headers.

Format (safetensors README): a little-endian uint64 N, N bytes of JSON, then the data. The JSON maps
each name to dtype, shape and data_offsets [begin, end) relative to the data; `__metadata__` holds
strings. Tensors cover the data without holes or overlaps. Pages of a mapped file would count as our
memory, so nothing is mapped.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm.files import human_bytes
from edgevlm_convert.json_file import (
    DAMAGED_HINT,
    check_regular_file,
    parse_json_object,
    quoted,
)

# The format's own limit.
MAX_HEADER_BYTES = 100_000_000
# A header of more bytes than this is checked for density before Python objects are made of it.
_UNCHECKED_HEADER_BYTES = 4_000_000
_MAX_TENSORS = 200_000
_MAX_DIMENSIONS = 8
_MAX_WHOLE_NUMBERS = 4096
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
# Bits of the exponent: all set means Inf or NaN.
_EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}

Bits = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """Where a tensor of the checkpoint lies.

    Attributes:
        name: as in the safetensors header.
        dtype: the format's name: "F32", "F16", "BF16" ... whatever the header says.
        shape: outermost dimension first.
        path: the shard.
        offset: of its first byte in the shard.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def n_values(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors of the checkpoint that this one is made of."""
        return (self.name,)

    def raw(self, start: int, stop: int) -> bytes:
        """Read elements [start, stop) of the flattened tensor as they are stored. Thread-safe.

        Raises:
            CheckpointError: the file has become shorter.
        """
        width = _ITEM_BYTES[self.dtype]
        return _pread(self.path, self.offset + start * width, (stop - start) * width)

    def bits(self, start: int, stop: int) -> Bits:
        """Read elements [start, stop) of the flattened tensor as unsigned integers of its width.

        Thread-safe.

        Raises:
            CheckpointError: the file has become shorter.
            ConversionError: a NaN or an Inf, or a dtype other than F32, F16 and BF16.
        """
        bits: Bits = np.frombuffer(self.raw(start, stop), dtype=f"<u{_ITEM_BYTES[self.dtype]}")
        exponent = _EXPONENT[self.dtype]
        exponents = bits & exponent
        if exponents.size and int(exponents.max()) == exponent:
            first = int(exponents.argmax())
            value = float(widen(bits[first : first + 1], self.dtype)[0])
            raise ConversionError(
                f"tensor {quoted(self.name)} holds {value} at element {start + first}",
                hint="the checkpoint is damaged or its training diverged; use another revision",
            )
        return bits


def whole_numbers(tensors: Mapping[str, SourceTensor], name: str) -> list[int]:
    """Return the values of a small tensor of signed 64-bit numbers.

    Raises:
        ConversionError: there is no such tensor, or it is large or of another type.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != "I64" or not 0 < tensor.n_values <= _MAX_WHOLE_NUMBERS:
        found = "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise ConversionError(
            f"tensor {quoted(name)}: {found}, expected a few numbers of type I64",
            hint=DAMAGED_HINT,
        )
    return [int(value) for value in np.frombuffer(tensor.raw(0, tensor.n_values), dtype="<i8")]


def widen(bits: Bits, dtype: str) -> NDArray[np.float32]:
    """Return the float32 values of "F32", "F16" or "BF16" bits."""
    if dtype == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32)


def read_header(path: Path) -> list[SourceTensor]:
    """Return the tensors of one safetensors file, sorted by name.

    Raises:
        CheckpointError: truncated, or a header that contradicts itself or the file.
    """
    where = quoted(path.name)
    size = check_regular_file(path)
    if size < 8:
        raise CheckpointError(f"{where} is truncated: {size} bytes", hint=DAMAGED_HINT)
    n_header = int(struct.unpack("<Q", _pread(path, 0, 8))[0])
    if n_header > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{where} claims a header of {n_header} bytes, "
            f"more than the {human_bytes(MAX_HEADER_BYTES)} the format allows",
            hint=DAMAGED_HINT,
        )
    if 8 + n_header > size:
        raise CheckpointError(
            f"{where} is truncated: its header needs {8 + n_header} bytes, the file has {size}",
            hint=DAMAGED_HINT,
        )
    raw = _pread(path, 8, n_header)
    _check_density(raw, where)
    header = parse_json_object(raw, where=f"the header of {where}")
    n_data = size - 8 - n_header
    spans: list[tuple[int, int, str]] = []
    tensors: list[SourceTensor] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _entry(where, name, entry, n_data)
        spans.append((begin, end, name))
        tensors.append(
            SourceTensor(
                name=name, dtype=dtype, shape=shape, path=path, offset=8 + n_header + begin
            )
        )
    _check_cover(where, spans, n_data)
    return sorted(tensors, key=lambda tensor: tensor.name)


def _entry(
    where: str, name: str, entry: object, n_data: int
) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, begin and end of one header entry, checked against each other."""
    what = f"{where}: tensor {quoted(name)}"
    fields = cast(dict[str, object], entry) if isinstance(entry, dict) else dict[str, object]()
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(
            f"{what} has dtype {quoted(str(dtype))}, which safetensors does not know",
            hint=DAMAGED_HINT,
        )
    dimensions = _naturals(shape)
    if dimensions is None or len(dimensions) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{what} has no valid shape", hint=DAMAGED_HINT)
    span = _naturals(offsets)
    if span is None or len(span) != 2 or not span[0] <= span[1] <= n_data:
        raise CheckpointError(
            f"{what} has data_offsets {quoted(str(offsets))}, beyond its {n_data} bytes of data",
            hint=DAMAGED_HINT + " (it may be truncated)",
        )
    n_bytes = math.prod(dimensions) * _ITEM_BYTES[dtype]
    if span[1] - span[0] != n_bytes:
        raise CheckpointError(
            f"{what} of shape {list(dimensions)} and dtype {dtype} needs {n_bytes} bytes, "
            f"its data_offsets give {span[1] - span[0]}",
            hint=DAMAGED_HINT,
        )
    return dtype, dimensions, span[0], span[1]


def _naturals(value: object) -> tuple[int, ...] | None:
    """Return a JSON list of integers >= 0 as a tuple, None for anything else."""
    if not isinstance(value, list):
        return None
    items = cast(list[object], value)
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return None
    numbers = cast(list[int], items)
    return tuple(numbers) if all(0 <= number < 1 << 63 for number in numbers) else None


def _check_cover(where: str, spans: list[tuple[int, int, str]], n_data: int) -> None:
    """Check that the tensors follow each other without holes or overlaps, up to the file's end."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            state = "overlaps another" if begin < position else "leaves a hole before it"
            raise CheckpointError(f"{where}: tensor {quoted(name)} {state}", hint=DAMAGED_HINT)
        position = end
    if position != n_data:
        raise CheckpointError(
            f"{where} has {n_data - position} bytes that belong to no tensor", hint=DAMAGED_HINT
        )


def _check_density(raw: bytes, where: str) -> None:
    """Refuse a large header with far more JSON values than its tensors explain."""
    if len(raw) <= _UNCHECKED_HEADER_BYTES:
        return
    n_tensors = raw.count(b'"data_offsets"')
    n_values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    # A tensor of 8 dimensions has 16 commas and brackets.
    if n_tensors > _MAX_TENSORS or n_values > 16 * n_tensors + 100_000:
        raise CheckpointError(
            f"the header of {where} holds {n_values} JSON values for {n_tensors} tensors",
            hint=DAMAGED_HINT,
        )


def _pread(path: Path, offset: int, n_bytes: int) -> bytes:
    """Read exactly `n_bytes` at `offset`; a descriptor of its own makes it thread-safe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    try:
        raw = os.pread(descriptor, n_bytes, offset)
        # One call returns at most 2 GiB, and less on some network file systems.
        while 0 < len(raw) < n_bytes:
            more = os.pread(descriptor, n_bytes - len(raw), offset + len(raw))
            if not more:
                break
            raw += more
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(raw) != n_bytes:
        raise CheckpointError(f"`{path}` ends early: it was cut short", hint=DAMAGED_HINT)
    return raw
