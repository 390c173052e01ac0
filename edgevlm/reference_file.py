"""Reference files: what transformers computes for some prompts, in one npz without pickles.

Goldens, `edgevlm reference` and `edgevlm verify` share the format. An array's name begins with
`case{n}.`; what is no array stands in `cases`, a JSON text. Logarithms are natural.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ReferenceFileError
from edgevlm.files import human_bytes

FORMAT_VERSION = 2
# Stands for a visual token in `input_ids`, as in the runtime's layouts.
VISUAL_TOKEN = -1
# Far above any reference that somebody makes; a bound on what a stranger's file makes us read.
_MAX_BYTES = 4 << 30
_MAX_ARRAYS = 100_000
# Noise hardly packs, a black image a thousandfold: what unpacks to much more is a bomb.
_PLAIN_BYTES, _MAX_RATIO = 256 << 20, 100
_N_CHANNELS = 3
_MAX_CASES = 10_000
_ARRAYS = {
    "input_ids": (np.int32, 1),
    "answer": (np.int32, 1),
    "top_ids": (np.int32, 2),
    "top_logprobs": (np.float32, 2),
    "tail_mass": (np.float32, 1),
}
# What zipfile, zlib and numpy raise on damaged files.
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_HINT = "make it again: `edgevlm reference CHECKPOINT --images DIR --out REF.npz`"


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseImage:
    """One image of a prompt.

    Attributes:
        name: of its file.
        sha256: of its pixels and size (`image_sha256`).
        pixels: what the vision tower was given, [3, height, width] float32 an encode; empty where
            it was not kept.
        embeddings: [n_tokens, n_embd] float32 of the projector, all encodes in order; None where
            they were not kept.
    """

    name: str
    sha256: str
    pixels: tuple[NDArray[np.float32], ...] = ()
    embeddings: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One prompt.

    Attributes:
        name: such as "one image".
        prompt: the question; images stand before it.
        images: in order.
        input_ids: of the prompt, as transformers' processor gives them, visual ones VISUAL_TOKEN.
        answer: token ids that follow the prompt, all but the last fed to the model.
        top_ids: [n, k] token ids, most likely first; row i predicts answer[i].
        top_logprobs: [n, k] their natural log-probabilities.
        tail_mass: [n] probability of all other tokens.
    """

    name: str
    prompt: str
    images: tuple[CaseImage, ...]
    input_ids: NDArray[np.int32]
    answer: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    tail_mass: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """A reference file.

    Attributes:
        made_by: versions and settings of what computed it.
        cases: prompts.
    """

    made_by: str
    cases: tuple[Case, ...]


def image_sha256(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's size and pixels, RGB uint8 [height, width, 3]."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{width}x{height}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def without_repeats(cases: Sequence[Case], *, n_values: int | None = None) -> tuple[Case, ...]:
    """Return the cases with what is known of an image kept in its first prompt alone.

    Args:
        cases: in order.
        n_values: of pixels to keep, those of the first images; None for all.
    """
    seen: set[str] = set()
    left = n_values

    def kept(image: CaseImage) -> CaseImage:
        nonlocal left
        if image.sha256 in seen:
            return CaseImage(name=image.name, sha256=image.sha256)
        if image.embeddings is not None:
            seen.add(image.sha256)
        size = sum(tile.size for tile in image.pixels)
        if left is None:
            return image
        if size > left:
            return replace(image, pixels=())
        left -= size
        return image

    return tuple(
        replace(case, images=tuple(kept(image) for image in case.images)) for case in cases
    )


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference file, whole: the caller gives a temporary name."""
    described = [
        {
            "name": case.name,
            "prompt": case.prompt,
            "images": [
                {
                    "name": image.name,
                    "sha256": image.sha256,
                    "n_pixels": len(image.pixels),
                    "has_embeddings": image.embeddings is not None,
                }
                for image in case.images
            ],
        }
        for case in reference.cases
    ]
    arrays: dict[str, NDArray[Any]] = {
        "format_version": np.asarray(FORMAT_VERSION),
        "made_by": np.asarray(reference.made_by),
        "cases": np.asarray(json.dumps(described)),
    }
    for number, case in enumerate(reference.cases):
        for key in _ARRAYS:
            arrays[f"case{number}.{key}"] = getattr(case, key)
        for key, values in _image_arrays(number, case.images):
            arrays[key] = values
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]


def _image_arrays(
    number: int, images: Sequence[CaseImage]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for place, image in enumerate(images):
        stem = f"case{number}.image{place}"
        for tile, pixels in enumerate(image.pixels):
            yield f"{stem}.pixels{tile}", pixels
        if image.embeddings is not None:
            yield f"{stem}.embeddings", image.embeddings


def read_reference(path: Path) -> Reference:
    """Read a reference file.

    Raises:
        ReferenceFileError: missing, no reference file, of another version, or hostile.
    """
    try:
        arrays = _load(path)
    except FileNotFoundError:
        raise ReferenceFileError(f"there is no file `{path}`", hint=_HINT) from None
    except _BROKEN as error:
        raise ReferenceFileError(
            f"`{path}` is no reference file: {str(error)[:200]}", hint=_HINT
        ) from error
    version = arrays.get("format_version")
    if version is None or version.shape != () or version.dtype.kind not in "iu":
        raise ReferenceFileError(f"`{path}` is no reference file", hint=_HINT)
    if int(version) != FORMAT_VERSION:
        raise ReferenceFileError(
            f"`{path}` has the format {int(version)}, this edgevlm reads {FORMAT_VERSION}",
            hint=_HINT,
        )
    try:
        described = cast(list[dict[str, Any]], json.loads(str(arrays["cases"])))
        cases = tuple(_case(arrays, number, entry) for number, entry in enumerate(described))
        made_by = str(arrays["made_by"])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ReferenceFileError(f"`{path}` is damaged: {str(error)[:200]}", hint=_HINT) from error
    if not 0 < len(cases) <= _MAX_CASES:
        raise ReferenceFileError(f"`{path}` holds {len(cases)} prompts", hint=_HINT)
    return Reference(made_by=made_by, cases=cases)


def _load(path: Path) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a file; nothing is unpacked before its size is known to be plausible."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        n_bytes = sum(entry.file_size for entry in entries)
        n_packed = sum(entry.compress_size for entry in entries)
        is_bomb = n_bytes > _PLAIN_BYTES and n_bytes > _MAX_RATIO * n_packed
        if len(entries) > _MAX_ARRAYS or n_bytes > _MAX_BYTES or is_bomb:
            raise ValueError(
                f"it unpacks to {len(entries)} arrays of {human_bytes(n_bytes)}, from"
                f" {human_bytes(n_packed)}"
            )
        return {entry.filename.removesuffix(".npy"): _unpack(archive, entry) for entry in entries}


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """Return one array; a shape that its bytes do not bear out is refused before it is made."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"`{entry.filename}` is a pickle")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError(f"`{entry.filename}` says that it is {list(shape)} {dtype}")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _case(arrays: Mapping[str, NDArray[Any]], number: int, entry: Mapping[str, Any]) -> Case:
    values = {
        key: _array(arrays, f"case{number}.{key}", dtype, n_dimensions)
        for key, (dtype, n_dimensions) in _ARRAYS.items()
    }
    n_rows = len(values["answer"])
    rows = [values[key].shape[0] for key in ("top_ids", "top_logprobs", "tail_mass")]
    if (
        not n_rows
        or set(rows) != {n_rows}
        or values["top_ids"].shape != values["top_logprobs"].shape
    ):
        raise ValueError(f"the arrays of prompt {number} contradict each other")
    logprobs, tail = values["top_logprobs"], values["tail_mass"]
    if (
        not logprobs.size
        or not np.isfinite(logprobs).all()
        or (logprobs > 1e-3).any()
        or not ((tail >= 0) & (tail <= 1.001)).all()
    ):
        raise ValueError(f"prompt {number} has probabilities that are none")
    images = tuple(
        _image(arrays, f"case{number}.image{place}", image)
        for place, image in enumerate(entry["images"])
    )
    return Case(name=str(entry["name"]), prompt=str(entry["prompt"]), images=images, **values)


def _image(arrays: Mapping[str, NDArray[Any]], stem: str, entry: Mapping[str, Any]) -> CaseImage:
    pixels = tuple(
        _array(arrays, f"{stem}.pixels{tile}", np.float32, 3) for tile in range(entry["n_pixels"])
    )
    embeddings = None
    if entry["has_embeddings"]:
        embeddings = _array(arrays, f"{stem}.embeddings", np.float32, 2)
    known = [*pixels, embeddings] if embeddings is not None else [*pixels]
    if any(not values.size or not np.isfinite(values).all() for values in known):
        raise ValueError(f"`{stem}` has values that are no numbers")
    if any(len(tile) != _N_CHANNELS for tile in pixels):
        raise ValueError(f"`{stem}` has pixels of other than {_N_CHANNELS} channels")
    return CaseImage(
        name=str(entry["name"]), sha256=str(entry["sha256"]), pixels=pixels, embeddings=embeddings
    )


def _array(
    arrays: Mapping[str, NDArray[Any]], key: str, dtype: type[Any], n_dimensions: int
) -> NDArray[Any]:
    values = arrays[key]
    if values.dtype != dtype or values.ndim != n_dimensions:
        raise ValueError(f"`{key}` is {values.dtype} of {values.ndim} dimensions")
    return values
