"""Models that are split over several GGUF files, seen as one.

llama.cpp's custom (tools/gguf-split, src/llama-model-loader.cpp): `NAME-00001-of-00003.gguf` holds
all metadata and the first tensors, the others only `split.no` (from 0), `split.count` and
`split.tensors.count`; the first one is loaded, and the others are found by its name.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile, GGUFTensor, read_gguf

MAX_SHARDS = 1000
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def shard_name(stem: str, number: int, count: int) -> str:
    """Return the file name of shard `number` (from 1) of `count`."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def shard_number(name: str) -> int:
    """Return which shard a file name says it is, from 1; 0 for a model in one file."""
    match = _NAME.fullmatch(name)
    return int(match["number"]) if match else 0


def model_stem(name: str) -> str:
    """Return a file's name without `.gguf`, and without the part's number of a split model."""
    match = _NAME.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".gguf")


def shard_paths(path: Path) -> tuple[Path, ...]:
    """Return the files of the model whose first file is `path`, by its name alone."""
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match["count"]) <= MAX_SHARDS:
        return (path,)
    count = int(match["count"])
    return tuple(
        path.with_name(shard_name(match["stem"], number, count)) for number in range(1, count + 1)
    )


def first_shard(path: Path) -> Path:
    """Return the first file of the model that `path`, a later one, is a part of.

    Raises:
        GGUFError: it is missing.
    """
    first = shard_paths(path)[0]
    if not first.exists():
        raise GGUFError(
            f"`{path}` is a part of a model, and `{first.name}` is missing",
            hint="copy or download it into the folder of the others",
        )
    return first


def read_model(path: Path) -> GGUFFile:
    """Read the header of a model; of a split one, the tensors of all files.

    Args:
        path: of the file, or of the first of several.

    Raises:
        SourceNotFoundError: there is no such file.
        GGUFError: broken, not the first file, another one is missing, or files that do not belong
            together.
    """
    first = read_gguf(path)
    count = _number(first, "split.count", default=1)
    if count <= 1:
        return first
    if _number(first, "split.no", default=0) != 0:
        raise GGUFError(
            f"`{path}` is part {_number(first, 'split.no', default=0) + 1} of a model in {count}"
            " files",
            hint=f"name its first file: `{shard_paths(path)[0]}`",
        )
    paths = shard_paths(path)
    if len(paths) != count:
        raise GGUFError(
            f"`{path}` is one of {count} files, its name does not say so",
            hint="give the files their names back: NAME-00001-of-0000N.gguf",
        )
    missing = next((other for other in paths if not other.exists()), None)
    if missing is not None:
        raise GGUFError(
            f"`{path}` is a model in {count} files, and `{missing.name}` is missing",
            hint="copy or download it into the folder of the others",
        )
    files = [first, *(read_gguf(other) for other in paths[1:])]
    tensors: list[GGUFTensor] = []
    for number, file in enumerate(files):
        if (_number(file, "split.no", default=-1), _number(file, "split.count", default=0)) != (
            number,
            count,
        ):
            raise GGUFError(
                f"`{file.path}` is not part {number + 1} of {count}",
                hint="the files are of different models, or were renamed; copy them again",
            )
        tensors += file.tensors
    names = {tensor.name for tensor in tensors}
    n_tensors = _number(first, "split.tensors.count", default=len(tensors))
    if len(names) != len(tensors) or n_tensors != len(tensors):
        raise GGUFError(
            f"`{path}` and its other files hold {len(names)} tensors, {n_tensors} were written",
            hint="the files are of different models; copy them again",
        )
    return replace(first, tensors=tuple(tensors), n_bytes=sum(file.n_bytes for file in files))


def paths_of(model: GGUFFile) -> tuple[Path, ...]:
    """Return the files of a model that `read_model` has read, the first one first."""
    is_split = _number(model, "split.count", default=1) > 1
    return shard_paths(model.path) if is_split else (model.path,)


def _number(file: GGUFFile, key: str, *, default: int) -> int:
    entry = file.metadata.get(key)
    value = entry.value if entry is not None and not entry.is_array else default
    if not isinstance(value, int) or isinstance(value, bool):
        raise GGUFError(f"`{file.path}` has no number as `{key}`", hint="copy the file again")
    return value
