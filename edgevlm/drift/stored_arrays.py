"""Named arrays in one npz file of a cache, which may be torn, or come from a stranger.

Nothing is packed, and nothing is read that is larger than the file itself: an array's bytes must
stand there as they are, of its shape and type, without pickles, with their checksum.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import OutputError
from edgevlm.files import TEMPORARY_PREFIX, check_free_space

# What zipfile, zlib and numpy raise on damaged files.
BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays; the file is there whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or its disk is too small.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_free_space(path.parent, sum(array.nbytes for array in arrays.values()))
        with temporary.open("wb") as file:
            values: dict[str, Any] = dict(arrays)
            np.savez(file, allow_pickle=False, **values)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}",
            hint="check the folder's permissions and its disk",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Read what `write_arrays` wrote; None where it is not there, torn or hostile."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                entry.filename.removesuffix(".npy"): _array(archive, entry)
                for entry in archive.infolist()
            }
    except BROKEN:
        return None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"`{entry.filename}` is packed")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"`{entry.filename}` is of another version")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or is_fortran or min(shape, default=0) < 0:
            raise ValueError(f"`{entry.filename}` is {shape} {dtype}")
        # The checksum is compared at the end of the bytes.
        data = file.read()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"`{entry.filename}` is not {shape} {dtype}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
