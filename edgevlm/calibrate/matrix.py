"""Sums per channel as an importance matrix: modalities balanced, written as llama.cpp reads it.

Form: see `edgevlm.quantize.imatrix_file`. Beside what every reader takes, `<name>.in_sum2` and
`<name>.counts`, the file keeps the sums of each kind of rows apart (`<name>.text_sum2` and so on),
so that a run can go on where it stopped, and what was weighted can be weighted otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import array, f32, string, u32
from edgevlm_convert.writer import OutputTensor, plan_gguf, write_gguf
from numpy.typing import NDArray

from edgevlm.errors import GGUFError, OutputError, QuantizationError
from edgevlm.gguf_file import GGUFFile, read_gguf
from edgevlm.native.channel_sums import MatrixSums
from edgevlm.native.text_context import IMAGE_ROWS, TEXT_ROWS
from edgevlm.quantize.imatrix_file import IMAGES_KEY, PROMPTS_KEY, f32_values

Sums = Mapping[str, Mapping[str, MatrixSums]]
_MODEL_KEY, _DONE_KEY = "edgevlm.calibrate.model", "edgevlm.calibrate.done"
_WEIGHT_KEY = "edgevlm.calibrate.image_weight"
_SUMS, _COUNTS = "_sum2", "_counts"
# A chunk is a prompt; llama.cpp divides by a chunk's size when it tells how many there were.
_CHUNK_SIZE = 1


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far a calibration has come.

    Attributes:
        model: which model it runs, in words that change with the model.
        done: what identifies each prompt that was run.
        sums: by kind of rows, then by matrix.
    """

    model: str
    done: tuple[str, ...]
    sums: Sums


def balanced(sums: Sums, *, image_weight: float) -> dict[str, MatrixSums]:
    """Return sums whose means are balanced between the rows of images and those of text.

    The mean square of a channel is `image_weight` times that over image rows plus the rest times
    that over text rows; a matrix (an expert) that saw one kind alone has the mean of that. Matrices
    of the vision tower see one kind of rows.

    Args:
        sums: by kind of rows.
        image_weight: 0 to 1.
    """
    text, image = sums.get(TEXT_ROWS, {}), sums.get(IMAGE_ROWS, {})
    found: dict[str, MatrixSums] = {}
    for matrices in sums.values():
        for name, one in matrices.items():
            if name in found:
                continue
            both = name in text and name in image
            found[name] = _mixed(text[name], image[name], image_weight) if both else one
    return found


def _mixed(text: MatrixSums, image: MatrixSums, image_weight: float) -> MatrixSums:
    counts = text.counts + image.counts
    # Where one kind never came, the other is all that is known.
    weight = np.where(image.counts == 0, 0.0, np.where(text.counts == 0, 1.0, image_weight))
    means = [one.sum2 / np.maximum(one.counts, 1)[:, None] for one in (text, image)]
    mean = (1 - weight)[:, None] * means[0] + weight[:, None] * means[1]
    return MatrixSums(sum2=mean * counts[:, None], counts=counts)


def write_matrix(
    path: Path, progressed: Progressed, *, datasets: Sequence[str], image_weight: float
) -> None:
    """Write an importance matrix; what was at `path` stays until the new one is complete.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors: list[OutputTensor] = []
    for name, one in balanced(progressed.sums, image_weight=image_weight).items():
        tensors += [_tensor(f"{name}.in{_SUMS}", one.sum2)]
        tensors += [_tensor(f"{name}.counts", one.counts[:, None])]
    for kind, matrices in progressed.sums.items():
        for name, one in matrices.items():
            tensors += [_tensor(f"{name}.{kind}{_SUMS}", one.sum2)]
            tensors += [_tensor(f"{name}.{kind}{_COUNTS}", one.counts[:, None])]
    metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array("STRING", datasets),
        "imatrix.chunk_count": u32(len(progressed.done)),
        "imatrix.chunk_size": u32(_CHUNK_SIZE),
        _MODEL_KEY: string(progressed.model),
        _DONE_KEY: array("STRING", progressed.done),
        _WEIGHT_KEY: f32(image_weight),
        IMAGES_KEY: u32(len({image_of(one) for one in progressed.done})),
        PROMPTS_KEY: u32(len(progressed.done)),
    }
    with _replaced(path) as temporary:
        write_gguf(plan_gguf(metadata=metadata, tensors=tensors), temporary)
        os.replace(temporary, path)


def check_writable(path: Path) -> None:
    """Make the folder of a file that is written once much has been computed.

    Raises:
        OutputError: nothing can be written there.
    """
    if path.is_dir():
        raise OutputError(f"`{path}` is a folder", hint="name a file with --out")
    with _replaced(path) as temporary:
        temporary.touch()


@contextmanager
def _replaced(path: Path) -> Generator[Path]:
    """Yield a file beside `path` to write first; it is gone when the block ends."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror}", hint="choose another place with --out"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def identify(image_sha256: str, prompt_sha256: str) -> str:
    """Return what identifies a prompt about an image."""
    return f"{image_sha256[:16]}-{prompt_sha256[:16]}"


def image_of(identity: str) -> str:
    """Return what identifies the image of a prompt."""
    return identity.partition("-")[0]


def _tensor(name: str, values: NDArray[np.float64] | NDArray[np.int64]) -> OutputTensor:
    stored = values.astype(np.float32)
    return OutputTensor(
        info=TensorInfo(name=name, shape=stored.shape, type="F32"), read=_reader(stored)
    )


def _reader(values: NDArray[np.float32]) -> Callable[[int, int], NDArray[np.float32]]:
    return lambda start, stop: np.ascontiguousarray(values[start:stop])


def read_progress(path: Path) -> Progressed:
    """Read how far a calibration came that wrote `path`.

    Raises:
        QuantizationError: the file is broken, or no calibration of ours wrote it.
    """
    hint = "leave out --resume to begin anew"
    try:
        file = read_gguf(path)
        model, done = file.metadata.get(_MODEL_KEY), file.metadata.get(_DONE_KEY)
        if model is None or done is None or not done.is_array:
            raise QuantizationError(f"`{path}` was not written by `edgevlm calibrate`", hint=hint)
        return Progressed(
            model=str(model.value),
            done=tuple(str(item) for item in done.head(done.n_items)),
            sums=_kept_sums(file),
        )
    except GGUFError as error:
        raise QuantizationError(error.message, hint=hint) from None


def _kept_sums(file: GGUFFile) -> dict[str, dict[str, MatrixSums]]:
    tensors = {tensor.name: tensor for tensor in file.tensors}
    sums: dict[str, dict[str, MatrixSums]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.removesuffix(_SUMS).rpartition(".")
        counts = tensors.get(f"{stem}.{kind}{_COUNTS}")
        if kind == "in" or not name.endswith(_SUMS) or counts is None:
            continue
        sum2, rows = f32_values(file.path, tensor), f32_values(file.path, counts)
        if len(tensor.shape) != 2 or len(sum2) % len(rows) or not np.isfinite(sum2).all():
            raise QuantizationError(
                f"`{file.path}` has broken sums `{name}`",
                hint="leave out --resume to begin anew",
            )
        sums.setdefault(kind, {})[stem] = MatrixSums(
            sum2=sum2.reshape(len(rows), -1).astype(np.float64),
            counts=np.rint(rows).astype(np.int64),
        )
    return sums
