"""Read an importance matrix: llama.cpp's GGUF form, and the older .dat.

Facts: common/imatrix-loader.cpp and tools/quantize/quantize.cpp as vendored in llama-cpp-python
0.3.36. A GGUF file holds for each matrix `<name>.in_sum2`, the sums of squares of its inputs, and
`<name>.counts`, how many inputs were summed, one count a matrix; what the encoder is given is their
ratio, and 1 everywhere for a matrix that saw no input. A .dat file holds sums of means, and the
number of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import GGUFError, QuantizationError, SourceNotFoundError
from edgevlm.gguf_file import GGUFFile, GGUFTensor, read_gguf
from edgevlm.quantize.importance import Importance

# What `edgevlm calibrate` adds: how many images and prompts the model was run over.
IMAGES_KEY, PROMPTS_KEY = "edgevlm.calibrate.images", "edgevlm.calibrate.prompts"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_BYTES = 4 << 30
_MAX_NAME_BYTES = 1024
_HINT = "make it again with `edgevlm calibrate` or llama-imatrix"


@dataclass(frozen=True, kw_only=True)
class Imatrix:
    """An importance matrix, and where it comes from.

    Attributes:
        importance: what the encoder uses.
        datasets: names of what it was made from, as the file says.
        n_chunks: of text that were read, as the file says.
        unseen: matrices (experts) that saw no input: their channels all count the same.
        n_images: that the model was shown, None where the file does not say.
        n_prompts: that it was asked, None where the file does not say.
    """

    importance: Importance
    datasets: tuple[str, ...]
    n_chunks: int
    unseen: tuple[str, ...]
    n_images: int | None = None
    n_prompts: int | None = None


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix of either form.

    Raises:
        SourceNotFoundError: there is no such file.
        QuantizationError: it is no importance matrix, truncated, or holds what none can hold.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            n_bytes = path.stat().st_size
    except FileNotFoundError:
        raise SourceNotFoundError(f"there is no file `{path}`", hint="check the path") from None
    except OSError as error:
        raise QuantizationError(f"cannot read `{path}`: {error.strerror}") from None
    if n_bytes > _MAX_BYTES:
        raise _broken(path, f"has {n_bytes} bytes, more than any importance matrix")
    if magic != b"GGUF":
        return _read_dat(path, path.read_bytes())
    try:
        return _read_gguf(read_gguf(path))
    except GGUFError as error:
        raise QuantizationError(error.message, hint=_HINT) from None


def _read_gguf(file: GGUFFile) -> Imatrix:
    tensors = {tensor.name: tensor for tensor in file.tensors}
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    counted = {name.removesuffix(_COUNTS) for name in tensors if name.endswith(_COUNTS)}
    if not names:
        raise _broken(file.path, "has no sums: it is no importance matrix")
    for name in names:
        if name not in counted:
            raise _broken(file.path, f"has sums for `{name}`, but no counts")
    channels: dict[str, NDArray[np.float32]] = {}
    unseen: list[str] = []
    for name in names:
        sums = _values(file.path, tensors[name + _SUMS])
        counts = np.rint(_values(file.path, tensors[name + _COUNTS]))
        if sums.size % counts.size:
            raise _broken(file.path, f"has {sums.size} sums and {counts.size} counts for `{name}`")
        rows = sums.reshape(counts.size, -1)
        seen = counts > 0
        means = np.ones_like(rows)
        np.divide(rows, counts[:, None], out=means, where=seen[:, None])
        unseen += [_matrix(name, index, counts.size) for index in np.flatnonzero(~seen).tolist()]
        channels[name] = means.ravel()
    return Imatrix(
        importance=Importance(channels=MappingProxyType(channels)),
        datasets=_datasets(file),
        n_chunks=_number(file, "imatrix.chunk_count") or 0,
        unseen=tuple(unseen),
        n_images=_number(file, IMAGES_KEY),
        n_prompts=_number(file, PROMPTS_KEY),
    )


def f32_values(path: Path, tensor: GGUFTensor) -> NDArray[np.float32]:
    """Return the values of a tensor of sums or counts, [n_values] float32.

    Raises:
        QuantizationError: it holds something else than float32, or nothing.
    """
    if tensor.type != "F32" or not tensor.n_weights:
        raise _broken(path, f"has `{tensor.name}` as {tensor.type} of {tensor.n_weights} values")
    with path.open("rb") as file:
        file.seek(tensor.offset)
        return np.frombuffer(file.read(tensor.n_bytes), "<f4")


def _values(path: Path, tensor: GGUFTensor) -> NDArray[np.float32]:
    return _checked(path, tensor.name, f32_values(path, tensor))


def _checked(path: Path, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all() or (values < 0).any():
        raise _broken(path, f"has negative or non-finite values in `{name}`")
    return values.astype(np.float32)


def _matrix(name: str, index: int, n_matrices: int) -> str:
    return name if n_matrices == 1 else f"{name}[{index}]"


def _datasets(file: GGUFFile) -> tuple[str, ...]:
    value = file.metadata.get("imatrix.datasets")
    return tuple(str(item) for item in value.head(100)) if value and value.is_array else ()


def _number(file: GGUFFile, key: str) -> int | None:
    value = file.metadata.get(key)
    return value.value if value is not None and isinstance(value.value, int) else None


def _read_dat(path: Path, data: bytes) -> Imatrix:
    position = 0

    def integer(what: str, least: int, most: int) -> int:
        nonlocal position
        if position + 4 > len(data):
            raise _broken(path, f"ends before {what}")
        (value,) = struct.unpack_from("<i", data, position)
        position += 4
        if not least <= value <= most:
            raise _broken(path, f"has {value} as {what}: it is no importance matrix")
        return value

    def piece(n_bytes: int, what: str) -> bytes:
        nonlocal position
        if position + n_bytes > len(data):
            raise _broken(path, f"ends inside {what}")
        position += n_bytes
        return data[position - n_bytes : position]

    channels: dict[str, NDArray[np.float32]] = {}
    for number in range(1, integer("the number of entries", 1, len(data) // 13 + 1) + 1):
        what = f"entry {number}"
        n_name_bytes = integer(f"the length of the name of {what}", 1, _MAX_NAME_BYTES)
        name = piece(n_name_bytes, what).decode("utf-8", "replace")
        n_calls = integer(f"the count of {what}", 0, 2**31 - 1)
        n_values = integer(f"the size of {what}", 1, len(data) // 4)
        sums = _checked(path, name, np.frombuffer(piece(4 * n_values, what), "<f4"))
        if name in channels:
            raise _broken(path, f"has `{name}` twice")
        channels[name] = sums / np.float32(n_calls) if n_calls else sums
    return Imatrix(
        importance=Importance(channels=MappingProxyType(channels)),
        datasets=(),
        n_chunks=_trailing_chunks(data, position),
        unseen=(),
    )


def _trailing_chunks(data: bytes, position: int) -> int:
    if position + 4 > len(data):
        return 0
    return max(0, struct.unpack_from("<i", data, position)[0])


def _broken(path: Path, what: str) -> QuantizationError:
    return QuantizationError(f"`{path}` {what}", hint=_HINT)
