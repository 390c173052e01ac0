"""Plan a GGUF file to the byte, then stream its tensors into it.

Layout (GGUF v3, facts from ggml's docs/gguf.md; equal to what llama.cpp writes): magic, version,
counts, metadata, tensor table, padding to 32 bytes, then each tensor padded to 32 bytes. Only slabs
of rows are in memory: a bounded window of jobs reads and encodes on a thread pool while this thread
writes in order.
"""

from __future__ import annotations

import math
import operator
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from edgevlm.errors import ConversionError
from edgevlm.progress import SILENT, Progress
from edgevlm_convert.encoder import TensorEncoder, TensorInfo
from edgevlm_convert.metadata import TypedValue, pack_string, pack_value

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
FLOAT_TYPES = ("F32", "F16", "BF16")
_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Float32 values of one slab: 512 KiB. With 16 threads some 100 copies of it are alive at once; half
# a million bytes still take far longer to encode than a job takes to hand over.
_SLAB_VALUES = 1 << 17
# Without an encoder the work is copying: more threads than this only make malloc keep more arenas.
_MAX_COPYING_THREADS = 4
_MAX_THREADS = 16
# Slabs that may wait, encoded, behind a slow one: one of Q4_K takes as long as thirty of Q5_0, and
# with fewer waiting the other threads stand still (benchmarks/convert.py: a tenth of the time).
_SLABS_WAITING = 32


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """One tensor of the file to be, with the ways to get at its rows.

    Rows are those of the 2-D view (product of all dimensions but the last, last dimension).

    Attributes:
        info: name, shape (numpy order) and type before an encoder is asked.
        read: (start, stop) -> float32 rows [stop - start, row_length], C-contiguous.
        read_raw: (start, stop) -> the bytes of those rows in `info.type`, for a copy without a
            round trip through float32; None when the source does not hold them so.
    """

    info: TensorInfo
    read: Callable[[int, int], NDArray[np.float32]]
    read_raw: Callable[[int, int], bytes] | None = None


@dataclass(frozen=True, kw_only=True)
class GGUFPlan:
    """All that is known of a GGUF file before its first byte is written.

    Attributes:
        metadata: the keys in the order in which they are written.
        tensors: in the order in which they are written.
        types: final tensor type by tensor name.
        sizes: bytes of each tensor by name, without padding.
        header: everything before the first tensor, padding included.
        n_bytes: exact size of the file.
        n_data_bytes: bytes of all tensors, without padding.
    """

    metadata: Mapping[str, TypedValue]
    tensors: tuple[OutputTensor, ...]
    types: Mapping[str, str]
    sizes: Mapping[str, int]
    header: bytes = field(repr=False)
    n_bytes: int
    n_data_bytes: int


def plan_gguf(
    *,
    metadata: Mapping[str, TypedValue],
    tensors: Sequence[OutputTensor],
    encoder: TensorEncoder | None = None,
) -> GGUFPlan:
    """Choose every tensor's type and compute every size.

    A key that the encoder sets replaces the old value in its place; a new key goes to the end.

    Args:
        metadata: keys and values in order; no `general.alignment` (32 is the default).
        tensors: in order; names are unique.
        encoder: asked once for shapes and types; None keeps `info.shape` and `info.type`.
    """
    types = {tensor.info.name: tensor.info.type for tensor in tensors}
    values = dict(metadata)
    if encoder is not None:
        shapes = encoder.shapes([tensor.info for tensor in tensors], metadata)
        tensors = [_grown(tensor, shapes) for tensor in tensors]
        chosen, replaced = encoder.plan([tensor.info for tensor in tensors], metadata)
        types.update(chosen)
        values.update(cast(dict[str, TypedValue], replaced))
    sizes = {
        tensor.info.name: _n_bytes(tensor.info, types[tensor.info.name], encoder)
        for tensor in tensors
    }
    return assemble(values, tensors, types, sizes)


def assemble(
    metadata: Mapping[str, TypedValue],
    tensors: Sequence[OutputTensor],
    types: Mapping[str, str],
    sizes: Mapping[str, int],
) -> GGUFPlan:
    """Return the plan of a file whose types and sizes, by tensor name, are known already."""
    names = [tensor.info.name for tensor in tensors]
    header = _header(metadata, [tensor.info for tensor in tensors], types, sizes)
    return GGUFPlan(
        metadata=metadata,
        tensors=tuple(tensors),
        types={name: types[name] for name in names},
        sizes={name: sizes[name] for name in names},
        header=header,
        n_bytes=len(header) + sum(padded(sizes[name]) for name in names),
        n_data_bytes=sum(sizes[name] for name in names),
    )


def write_gguf(
    plan: GGUFPlan,
    path: Path,
    *,
    encoder: TensorEncoder | None = None,
    n_threads: int | None = None,
    progress: Progress = SILENT,
    label: str = "Writing tensors",
    observer: Callable[[bytes], None] | None = None,
) -> None:
    """Write the planned file to `path` (a temporary name: it becomes visible elsewhere).

    Args:
        plan: what `plan_gguf` returned.
        path: file to create or to overwrite.
        encoder: the one that `plan_gguf` was given.
        n_threads: readers and encoders at work; None: one per processor.
        progress: told the bytes of tensor data written.
        label: the task's name for `progress`.
        observer: given every piece of the file, in order, after it was written.

    Raises:
        ConversionError: a value that its tensor type cannot hold.
    """
    most = _MAX_COPYING_THREADS if encoder is None else _MAX_THREADS
    threads = max(1, min(n_threads or os.cpu_count() or 1, most))
    executor = ThreadPoolExecutor(threads, thread_name_prefix="edgevlm-encode")
    try:
        with (
            path.open("wb") as file,
            progress.task(label, total=plan.n_data_bytes, unit="bytes") as advance,
        ):
            _write(file, plan.header, observer)
            for data in _in_order(executor, _jobs(plan, encoder), window=threads + _SLABS_WAITING):
                _write(file, data.payload, observer)
                _write(file, b"\0" * data.n_padding, observer)
                advance(len(data.payload))
            _check_size(file, plan)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def encode_float(name: str, rows: NDArray[np.float32], type: str) -> bytes:
    """Return float32 rows as "F32", "F16" or "BF16" (round to nearest even, as ggml does).

    Raises:
        ConversionError: a finite value overflows; it names the tensor `name`.
    """
    if type == "F32":
        return rows.astype("<f4", copy=False).tobytes()
    if type == "F16":
        with np.errstate(over="ignore"):
            half = rows.astype("<f2")
        if not np.isfinite(half).all():
            raise _overflow(name, rows, "F16", "65504")
        return half.tobytes()
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise _overflow(name, rows, "BF16", "3.39e38")
    return rounded.tobytes()


def _grown(tensor: OutputTensor, shapes: Mapping[str, tuple[int, ...]]) -> OutputTensor:
    """Return a tensor with zeros behind its rows and columns, where `shapes` has a larger one."""
    old = tensor.info.shape
    new = shapes.get(tensor.info.name, old)
    if new == old:
        return tensor
    if len(old) not in (1, 2) or len(old) != len(new) or any(map(operator.gt, old, new)):
        raise ValueError(f"{tensor.info.name}: {old} cannot grow to {new}")
    n_rows, n_columns = math.prod(old[:-1]), old[-1]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = np.zeros((stop - start, new[-1]), np.float32)
        end = min(stop, n_rows)
        if start < end:
            rows[: end - start, :n_columns] = tensor.read(start, end)
        return rows

    return replace(tensor, info=replace(tensor.info, shape=new), read=read, read_raw=None)


def _write(file: BinaryIO, piece: bytes, observer: Callable[[bytes], None] | None) -> None:
    file.write(piece)
    if observer is not None:
        observer(piece)


@dataclass(frozen=True, kw_only=True)
class _Data:
    payload: bytes
    n_padding: int


def _jobs(plan: GGUFPlan, encoder: TensorEncoder | None) -> Iterator[Callable[[], _Data]]:
    """Yield one job per slab of rows, in file order."""
    for tensor in plan.tensors:
        info = tensor.info
        row_length = info.shape[-1] if info.shape else 1
        n_rows = math.prod(info.shape[:-1])
        slab = max(1, _SLAB_VALUES // max(1, row_length))
        size = plan.sizes[info.name]
        for start in range(0, n_rows, slab):
            stop = min(start + slab, n_rows)
            yield _job(
                tensor,
                plan.types[info.name],
                (start, stop),
                encoder,
                n_bytes=size * stop // n_rows - size * start // n_rows,
                n_padding=padded(size) - size if stop == n_rows else 0,
            )


def _job(
    tensor: OutputTensor,
    type: str,
    rows: tuple[int, int],
    encoder: TensorEncoder | None,
    *,
    n_bytes: int,
    n_padding: int,
) -> Callable[[], _Data]:
    def run() -> _Data:
        info = tensor.info
        if type == info.type and tensor.read_raw is not None:
            payload = tensor.read_raw(*rows)
        elif type in FLOAT_TYPES:
            payload = encode_float(info.name, tensor.read(*rows), type)
        elif encoder is not None:
            payload = encoder.encode(info, tensor.read(*rows), type, first_row=rows[0])
        else:
            raise ValueError(f"no encoder for {info.name} as {type}")
        if len(payload) != n_bytes:
            raise ValueError(
                f"{info.name} rows {rows} as {type}: {len(payload)} != {n_bytes} bytes"
            )
        return _Data(payload=payload, n_padding=n_padding)

    return run


def _in_order(
    executor: ThreadPoolExecutor, jobs: Iterator[Callable[[], _Data]], *, window: int
) -> Iterator[_Data]:
    """Yield the jobs' results in order, with at most `window` of them under way or waiting."""
    pending: deque[Future[_Data]] = deque()
    for job in jobs:
        if len(pending) == window:
            yield pending.popleft().result()
        pending.append(executor.submit(job))
    while pending:
        yield pending.popleft().result()


def _header(
    metadata: Mapping[str, TypedValue],
    tensors: Sequence[TensorInfo],
    types: Mapping[str, str],
    sizes: Mapping[str, int],
) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [pack_string(key), pack_value(value)]
    offset = 0
    for info in tensors:
        dimensions = info.shape[::-1]
        type_id = GGMLQuantizationType[types[info.name]].value
        parts.append(pack_string(info.name))
        parts.append(struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
        parts.append(struct.pack("<IQ", type_id, offset))
        offset += padded(sizes[info.name])
    raw = b"".join(parts)
    return raw + b"\0" * (padded(len(raw)) - len(raw))


def _n_bytes(info: TensorInfo, type: str, encoder: TensorEncoder | None) -> int:
    if type in _FLOAT_BYTES:
        return math.prod(info.shape) * _FLOAT_BYTES[type]
    if encoder is None:
        raise ValueError(f"no encoder knows the size of {info.name} as {type}")
    return encoder.n_bytes(info.shape, type)


def _check_size(file: BinaryIO, plan: GGUFPlan) -> None:
    if file.tell() != plan.n_bytes:
        raise ValueError(f"planned {plan.n_bytes} bytes, wrote {file.tell()}")


def padded(n_bytes: int) -> int:
    """Return how many bytes a tensor of `n_bytes` takes in a file."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _overflow(name: str, rows: NDArray[np.float32], type: str, limit: str) -> ConversionError:
    largest = float(np.abs(rows).max())
    return ConversionError(
        f"tensor `{name}` holds {largest:.6g}, beyond what {type} can hold ({limit})",
        hint="keep the checkpoint's range with `--outtype bf16`"
        if type == "F16"
        else "keep the checkpoint's range with `--outtype f32`",
    )
