"""Rules whose tensors get another shape: Stack, Transposed, Permuted, Reshaped and Channels.

Experts of a mixture are one 3-D tensor in a GGUF file, [n, rows, columns]. Checkpoints have them
one by one, or packed, some of these with each matrix transposed. All are read slab by slab.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from edgevlm_convert.rules import Mapped, Precision, Rule, Shape
from edgevlm_convert.safetensors import Bits, SourceTensor, widen

# (matrix of the stack, first row, last row + 1) -> bits of these rows, flattened.
_MatrixRows = Callable[[int, int, int], Bits]


class TransposedMatrices:
    """Transposed parts of matrices; those used last are kept, because slabs come in order.

    A slab of a transposed matrix takes a few values of every row of the source: without this each
    slab would read the whole matrix. Shared by all rules of a model, so that the memory it takes is
    that of `max_kept` matrices.
    """

    def __init__(self, max_kept: int = 2) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[tuple[str, int, int], Bits] = OrderedDict()
        self._lock = Lock()

    def get(self, tensor: SourceTensor, matrix: int, part: int, n_parts: int) -> Bits:
        """Return [columns / n_parts, rows] bits: a part of the columns of one matrix, as rows.

        Thread-safe.

        Args:
            tensor: [n, rows, columns].
            matrix: which of the n.
            part: which part of the columns.
            n_parts: how many parts there are.
        """
        key = (tensor.name, matrix, part)
        with self._lock:
            found = self._kept.pop(key, None)
            if found is None:
                found = _transposed(tensor, matrix, part, n_parts)
                while len(self._kept) >= self._max_kept:
                    self._kept.popitem(last=False)
            self._kept[key] = found  # last in order: used last
            return found


def _transposed(tensor: SourceTensor, matrix: int, part: int, n_parts: int) -> Bits:
    _, n_rows, n_columns = tensor.shape
    size, width = n_rows * n_columns, n_columns // n_parts
    whole = tensor.bits(matrix * size, (matrix + 1) * size).reshape(n_rows, n_columns)
    return np.ascontiguousarray(whole[:, part * width : (part + 1) * width].T)


@dataclass(frozen=True, kw_only=True)
class Transposed:
    """A stack of matrices, each transposed, then cut into equal parts along its rows.

    Attributes:
        source: name of a tensor [n, columns, rows].
        shape: of the source.
        targets: names of the parts, each [n, rows / number of parts, columns].
        matrices: keeps what is read more than once; a model's rules share one.
    """

    source: str
    shape: Shape
    targets: tuple[str, ...]
    precision: Precision = "matrix"
    required: bool = True
    matrices: TransposedMatrices = field(default_factory=TransposedMatrices)

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {self.source: self.shape}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        n_parts = len(self.targets)
        n, n_columns, n_rows = self.shape

        def rows_of(part: int) -> _MatrixRows:
            def rows(matrix: int, start: int, stop: int) -> Bits:
                found = self.matrices.get(tensor, matrix, part, n_parts)
                return found[start:stop].reshape(-1)

            return rows

        return [
            _stacked(
                name=target,
                shape=(n, n_rows // n_parts, n_columns),
                sources=tensor.parts,
                precision=self.precision,
                dtype=tensor.dtype,
                rows=rows_of(part),
            )
            for part, target in enumerate(self.targets)
        ]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Matrices of one shape, one tensor each, as one tensor [n, rows, columns].

    Attributes:
        sources: names, in order.
        shape: of each of them.
        target: name of the stack.
    """

    sources: Sequence[str]
    shape: Shape
    target: str
    precision: Precision = "matrix"
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return dict.fromkeys(self.sources, self.shape)

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        parts = [tensors[name] for name in self.sources]
        dtypes = {part.dtype for part in parts}
        dtype = parts[0].dtype if len(dtypes) == 1 else "F32"
        row_length = self.shape[-1]

        def rows(matrix: int, start: int, stop: int) -> Bits:
            part = parts[matrix]
            bits = part.bits(start * row_length, stop * row_length)
            return bits if part.dtype == dtype else widen(bits, part.dtype).view(np.uint32)

        return [
            _stacked(
                name=self.target,
                shape=(len(parts), *self.shape),
                sources=tuple(name for part in parts for name in part.parts),
                precision=self.precision,
                dtype=dtype,
                rows=rows,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """A tensor whose rows are tensors themselves, their axes in another order.

    Attributes:
        source: name of a tensor.
        shape: of the source.
        view: its shape once each row is unfolded, [rows, ...].
        axes: of `view` in the order of the target; 0 stands first.
        target: GGUF name.
    """

    source: str
    shape: Shape
    view: Shape
    axes: tuple[int, ...]
    target: str
    precision: Precision = "matrix"
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {self.source: self.shape}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        shape = tuple(self.view[axis] for axis in self.axes)
        size, row_length = math.prod(shape[1:]), shape[-1]
        n_rows = size // row_length

        def bits(start: int, stop: int) -> Bits:
            first, last = start // n_rows, -(-stop // n_rows)
            found = tensor.bits(first * size, last * size).reshape(last - first, *self.view[1:])
            rows = found.transpose(self.axes).reshape(-1, row_length)
            low = start - first * n_rows
            return np.ascontiguousarray(rows[low : low + stop - start]).reshape(-1)

        return [
            Mapped(
                name=self.target,
                shape=shape,
                sources=tensor.parts,
                precision=self.precision,
                read=lambda start, stop: widen(bits(start, stop), tensor.dtype).reshape(
                    -1, row_length
                ),
                dtype=tensor.dtype,
                read_bits=bits,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Reshaped:
    """The one tensor of another rule, its rows as long as before, under another shape."""

    rule: Rule
    shape: Shape

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return self.rule.shapes

    @property
    def required(self) -> bool:
        """See Rule."""
        return self.rule.required

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        return [replace(mapped, shape=self.shape) for mapped in self.rule.apply(tensors)]


@dataclass(frozen=True, kw_only=True)
class Channels:
    """A vector [n] as [1, n, 1, 1]: ggml adds it to a picture channel by channel.

    Attributes:
        source: name of the vector.
        n: channels.
        target: GGUF name.
    """

    source: str
    n: int
    target: str
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {self.source: (self.n,)}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        return [
            Mapped(
                name=self.target,
                shape=(1, self.n, 1, 1),
                sources=tensor.parts,
                precision="f32",
                read=lambda start, stop: widen(tensor.bits(start, stop), tensor.dtype).reshape(
                    -1, 1
                ),
            )
        ]


def _stacked(
    *,
    name: str,
    shape: Shape,
    sources: tuple[str, ...],
    precision: Precision,
    dtype: str,
    rows: _MatrixRows,
) -> Mapped:
    """Return a stack [n, rows, columns] that is read matrix by matrix."""
    _, height, row_length = shape

    def bits(start: int, stop: int) -> Bits:
        pieces: list[Bits] = []
        while start < stop:
            matrix, first = divmod(start, height)
            last = min(height, first + stop - start)
            pieces.append(rows(matrix, first, last))
            start += last - first
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return Mapped(
        name=name,
        shape=shape,
        sources=sources,
        precision=precision,
        read=lambda start, stop: widen(bits(start, stop), dtype).reshape(-1, row_length),
        dtype=dtype,
        read_bits=bits,
    )
