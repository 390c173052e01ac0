"""Read the metadata and the tensor table of one GGUF file, fast and suspiciously.

Nothing in the file is believed: counts are held against the file's size before anything is
allocated, names must be unique, and every tensor must lie inside the file, aligned and apart from
the others. Whatever is wrong raises GGUFError. Arrays are walked but not decoded until somebody
asks, so that a vocabulary of 150,000 tokens costs milliseconds. Weights are never touched.

Source of the layout: the GGUF specification (ggml docs/gguf.md), versions 2 and 3; where the
specification leaves room (nested arrays, length of names), what llama.cpp loads decides.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType

from edgevlm.errors import GGUFError, SourceNotFoundError
from edgevlm.ggml_types import (
    FILE_TYPES,
    TENSOR_TYPES_BY_ID,
    TypeCount,
    tensor_n_bytes,
    type_histogram,
)
from edgevlm.gguf_value import ARRAY, SCALARS, STRING, GGUFValue

DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_MAX_KEY_BYTES = 65_535
# ggml's own limit (GGML_MAX_NAME), the final zero included.
_MAX_NAME_BYTES = 63
_MAX_DIMENSIONS = 4
_MAX_WEIGHTS = (1 << 63) - 1
# The largest vocabularies need some 20 MB; a table beyond this is an attack or an accident.
_MAX_HEADER_BYTES = 1 << 30
_FIRST_READ_BYTES = 1 << 24
_MAGIC = b"GGUF"
# Smallest possible metadata entry (key of one byte, one byte of value) and tensor entry.
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8
_HINT = "download or convert the file again"


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """One entry of the tensor table.

    Attributes:
        name: such as `blk.0.attn_v.weight`.
        shape: outermost dimension first (numpy order); the last one is the row length.
        type: "F32", "Q4_K" ...
        offset: of its data, from the start of the file, in bytes.
        n_bytes: of its data.
        path: the file that it lies in; a model may have several.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int
    path: Path

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """Everything of a GGUF file but its weights.

    Attributes:
        path: the file.
        version: of the format, 2 or 3.
        alignment: of tensor data, in bytes.
        metadata: values by key, in the file's order.
        tensors: the tensor table, in the file's order.
        data_offset: where tensor data starts, from the start of the file.
        n_bytes: size of the file.
    """

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, GGUFValue]
    tensors: tuple[GGUFTensor, ...]
    data_offset: int
    n_bytes: int

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "qwen3vl" ("clip" for a projector); "" when absent."""
        return self._string("general.architecture")

    @property
    def name(self) -> str:
        """`general.name`; "" when absent."""
        return self._string("general.name")

    @property
    def is_projector(self) -> bool:
        """Whether this is a projector (mmproj) rather than a text model."""
        return self.architecture == "clip"

    @property
    def file_type(self) -> str | None:
        """Level that `general.file_type` states, such as "Q4_K_M"; None when absent or unknown."""
        value = self.metadata.get("general.file_type")
        if value is None or value.is_array or not isinstance(value.value, int):
            return None
        return FILE_TYPES.get(value.value)

    @property
    def n_weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def n_data_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight: tensor data over number of weights; 0.0 without tensors."""
        return 8 * self.n_data_bytes / self.n_weights if self.tensors else 0.0

    def type_histogram(self) -> dict[str, TypeCount]:
        """Return tensors and bytes per tensor type, the most bytes first."""
        return type_histogram((tensor.type, tensor.n_bytes) for tensor in self.tensors)

    def _string(self, key: str) -> str:
        value = self.metadata.get(key)
        return value.value if value is not None and isinstance(value.value, str) else ""


def read_gguf(path: Path) -> GGUFFile:
    """Read metadata and tensor table of the GGUF file at `path`.

    Raises:
        SourceNotFoundError: there is no such file.
        GGUFError: the file is no GGUF, of another version, big-endian, truncated or hostile.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file.fileno())
    except FileNotFoundError:
        raise SourceNotFoundError(
            f"there is no file `{path}`", hint="check the path to the .gguf file"
        ) from None
    except OSError as error:
        raise GGUFError(
            f"cannot read `{path}`: {error.strerror}", hint="name a .gguf file that you may read"
        ) from None
    except _BrokenError as error:
        raise GGUFError(f"`{path}` {error}", hint=error.hint) from None


class _BrokenError(Exception):
    """What is wrong with the file, without its name."""

    def __init__(self, message: str, hint: str = _HINT) -> None:
        super().__init__(message)
        self.hint = hint


class _ReadMoreError(Exception):
    """The table goes on beyond the part that has been read."""


def _read(path: Path, descriptor: int) -> GGUFFile:
    n_file_bytes = os.fstat(descriptor).st_size
    n_bytes = _FIRST_READ_BYTES
    while True:
        data = os.pread(descriptor, n_bytes, 0)
        try:
            return _parse(path, _Reader(data, n_file_bytes))
        except _ReadMoreError:
            if len(data) < n_bytes or n_bytes >= _MAX_HEADER_BYTES:
                raise _BrokenError("has an absurdly large metadata or tensor table") from None
            n_bytes = min(4 * n_bytes, _MAX_HEADER_BYTES)


class _Reader:
    """A position in the first bytes of a file whose full size is known."""

    def __init__(self, data: bytes, n_file_bytes: int) -> None:
        self.data = data
        self.n_file_bytes = n_file_bytes
        self.position = 0

    def skip(self, n_bytes: int) -> int:
        """Step over `n_bytes` and return where they start."""
        start = self.position
        self._move(start + n_bytes)
        return start

    def u32(self) -> int:
        return _U32.unpack_from(self.data, self.skip(4))[0]

    def u64(self) -> int:
        return _U64.unpack_from(self.data, self.skip(8))[0]

    def count(self, min_item_bytes: int, what: str) -> int:
        """Read a count of items that the rest of the file must have room for."""
        count = self.u64()
        if count > (self.n_file_bytes - self.position) // min_item_bytes:
            raise _BrokenError(f"claims {count} {what}, more than its size allows")
        return count

    def text(self, what: str, max_bytes: int) -> str:
        """Read a name: 1 to `max_bytes` bytes of UTF-8."""
        length = self.u64()
        if not 0 < length <= max_bytes:
            raise _BrokenError(f"has a {what} of {length} bytes (1 to {max_bytes} are allowed)")
        start = self.skip(length)
        try:
            name = self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise _BrokenError(f"has a {what} that is not UTF-8") from None
        if "\0" in name:  # to ggml it ends there
            raise _BrokenError(f"has a zero byte in the {what} {_quoted(name)}")
        return name

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings. The hot loop: checks wait until its end."""
        position, data, unpack = self.position, self.data, _U64.unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        except (struct.error, OverflowError):
            position += 8
        self._move(position)

    def _move(self, position: int) -> None:
        if position > self.n_file_bytes:
            raise _BrokenError("is truncated: it ends inside its metadata or tensor table")
        if position > len(self.data):
            raise _ReadMoreError
        self.position = position


def _parse(path: Path, reader: _Reader) -> GGUFFile:
    version = _read_version(reader)
    n_tensors = reader.count(_MIN_TENSOR_BYTES, "tensors")
    n_keys = reader.count(_MIN_KEY_BYTES, "metadata keys")
    metadata: dict[str, GGUFValue] = {}
    for _ in range(n_keys):
        key = reader.text("metadata key", _MAX_KEY_BYTES)
        if key in metadata:
            raise _BrokenError(f"has the metadata key {_quoted(key)} twice")
        metadata[key] = _read_value(reader, key)
    alignment = _alignment(metadata)
    entries = [_read_tensor(reader, path) for _ in range(n_tensors)]
    data_offset = -(-reader.position // alignment) * alignment
    tensors = tuple(
        GGUFTensor(
            name=entry.name,
            shape=entry.shape,
            type=entry.type,
            offset=data_offset + entry.offset,
            n_bytes=entry.n_bytes,
            path=path,
        )
        for entry in entries
    )
    _check_layout(tensors, alignment, reader.n_file_bytes)
    return GGUFFile(
        path=path,
        version=version,
        alignment=alignment,
        metadata=MappingProxyType(metadata),
        tensors=tensors,
        data_offset=data_offset,
        n_bytes=reader.n_file_bytes,
    )


def _read_version(reader: _Reader) -> int:
    if reader.n_file_bytes < 24 or reader.data[:4] != _MAGIC:
        raise _BrokenError("is not a GGUF file", "name a .gguf file")
    reader.skip(4)
    version = reader.u32()
    if version & 0xFFFF == 0 and version != 0:
        raise _BrokenError("is a big-endian GGUF file", "use a little-endian file")
    if version == 1:
        raise _BrokenError("is GGUF version 1, which nobody reads any more", _HINT)
    if version not in (2, 3):
        raise _BrokenError(f"is GGUF version {version}; versions 2 and 3 are known", _HINT)
    return version


def _read_value(reader: _Reader, key: str) -> GGUFValue:
    type_id = reader.u32()
    start = reader.position
    n_items = 1
    if type_id == ARRAY:
        item_id = reader.u32()
        item_type = _skip_items(reader, item_id, key, is_array=True)
        n_items = _U64.unpack_from(reader.data, start + 4)[0]
        type_ = f"ARRAY:{item_type}"
    else:
        type_ = _skip_items(reader, type_id, key, is_array=False)
    # A copy: a view would keep all that was read alive, megabytes of weights for a small header.
    return GGUFValue(type=type_, encoded=reader.data[start : reader.position], n_items=n_items)


def _skip_items(reader: _Reader, type_id: int, key: str, *, is_array: bool) -> str:
    """Step over an array's count and items, or over one item; return the type of an item."""
    if type_id == STRING:
        reader.skip_strings(reader.count(8, "strings") if is_array else 1)
        return "STRING"
    if type_id == ARRAY:
        raise _BrokenError(f"has nested arrays in {_quoted(key)}; no runtime reads those")
    if type_id not in SCALARS:
        raise _BrokenError(f"has an unknown value type {type_id} in {_quoted(key)}")
    name, code = SCALARS[type_id]
    size = struct.calcsize(f"<{code}")
    reader.skip(size * (reader.count(size, "array items") if is_array else 1))
    return name


def _alignment(metadata: Mapping[str, GGUFValue]) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.type != "UINT32" or not isinstance(value.value, int):
        raise _BrokenError(f"has `general.alignment` of type {value.type} instead of UINT32")
    if not 0 < value.value <= _MAX_ALIGNMENT or value.value & (value.value - 1):
        raise _BrokenError(
            f"has an alignment of {value.value} bytes, not a power of two up to {_MAX_ALIGNMENT}"
        )
    return value.value


def _read_tensor(reader: _Reader, path: Path) -> GGUFTensor:
    """Read one table entry; its offset is still relative to the start of the data."""
    name = reader.text("tensor name", _MAX_NAME_BYTES)
    n_dimensions = reader.u32()
    if n_dimensions > _MAX_DIMENSIONS:
        raise _BrokenError(f"has {n_dimensions} dimensions in tensor {_quoted(name)}")
    shape = tuple(reversed([reader.u64() for _ in range(n_dimensions)]))
    if not 0 < prod(shape) <= _MAX_WEIGHTS:
        raise _BrokenError(f"has the impossible shape {list(shape)} in tensor {_quoted(name)}")
    type_id = reader.u32()
    if type_id not in TENSOR_TYPES_BY_ID:
        raise _BrokenError(f"has an unknown tensor type {type_id} in tensor {_quoted(name)}")
    type_ = TENSOR_TYPES_BY_ID[type_id]
    row_length = shape[-1] if shape else 1
    if row_length % type_.block_size:
        raise _BrokenError(
            f"has rows of {row_length} weights in tensor {_quoted(name)}, "
            f"which is no multiple of {type_.name}'s block of {type_.block_size}"
        )
    n_bytes = tensor_n_bytes(shape, type_.name)
    return GGUFTensor(
        name=name,
        shape=shape,
        type=type_.name,
        offset=reader.u64(),
        n_bytes=n_bytes,
        path=path,
    )


def _check_layout(tensors: tuple[GGUFTensor, ...], alignment: int, n_file_bytes: int) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise _BrokenError(f"has the tensor {_quoted(tensor.name)} twice")
        names.add(tensor.name)
        if tensor.offset % alignment:
            raise _BrokenError(f"has tensor {_quoted(tensor.name)} at an unaligned offset")
        if tensor.offset + tensor.n_bytes > n_file_bytes:
            raise _BrokenError(
                f"is truncated: tensor {_quoted(tensor.name)} ends at byte "
                f"{tensor.offset + tensor.n_bytes}, the file at {n_file_bytes}"
            )
    for before, after in pairwise(sorted(tensors, key=lambda tensor: tensor.offset)):
        if before.offset + before.n_bytes > after.offset:
            raise _BrokenError(
                f"has tensors {_quoted(before.name)} and {_quoted(after.name)} overlapping"
            )


def _quoted(name: str) -> str:
    """A name from the file, fit for a terminal: what is not printable ASCII is escaped."""
    return f"`{ascii(name[:100])[1:-1]}`"
