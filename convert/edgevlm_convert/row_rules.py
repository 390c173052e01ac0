"""Rows of matrices: some of one, in one tensor or in several; those of several, in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from edgevlm_convert.rules import Mapped, Precision, Shape
from edgevlm_convert.safetensors import Bits, SourceTensor, widen


@dataclass(frozen=True, kw_only=True)
class LaterRows:
    """The rows of a matrix from one on.

    Attributes:
        source: name of a matrix.
        shape: of it.
        first: the first row that is kept.
        target: GGUF name.
        precision: which float type it is stored in.
    """

    source: str
    shape: Shape
    first: int
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
        n_rows, width = self.shape

        def bits(start: int, stop: int) -> Bits:
            return tensor.bits((self.first + start) * width, (self.first + stop) * width)

        return [
            Mapped(
                name=self.target,
                shape=(n_rows - self.first, width),
                sources=tensor.parts,
                precision=self.precision,
                read=lambda start, stop: widen(bits(start, stop), tensor.dtype).reshape(-1, width),
                dtype=tensor.dtype,
                read_bits=bits,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One matrix, cut between rows into several.

    Attributes:
        source: name of a matrix.
        width: values of a row.
        targets: GGUF names, top to bottom, and the rows of each.
    """

    source: str
    width: int
    targets: Mapping[str, int]
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {self.source: (sum(self.targets.values()), self.width)}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        first, found = 0, list[Mapped]()
        for target, n_rows in self.targets.items():
            rest = LaterRows(
                source=self.source, shape=(first + n_rows, self.width), first=first, target=target
            )
            found += rest.apply(tensors)
            first += n_rows
        return found


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Matrices of one width, one below the other in one tensor.

    Attributes:
        sources: names, top to bottom, and the rows of each.
        width: values of a row.
        target: GGUF name.
    """

    sources: Mapping[str, int]
    width: int
    target: str
    precision: Precision = "matrix"
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {name: (n_rows, self.width) for name, n_rows in self.sources.items()}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        parts = [tensors[name] for name in self.sources]
        ends = list(accumulate(self.sources.values()))
        dtypes = {part.dtype for part in parts}
        dtype = parts[0].dtype if len(dtypes) == 1 else "F32"

        def bits(start: int, stop: int) -> Bits:
            pieces: list[Bits] = []
            for part, end, n_rows in zip(parts, ends, self.sources.values(), strict=True):
                low, high = (min(max(row - end + n_rows, 0), n_rows) for row in (start, stop))
                if low < high:
                    found = part.bits(low * self.width, high * self.width)
                    same = part.dtype == dtype
                    pieces.append(found if same else widen(found, part.dtype).view(np.uint32))
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        return [
            Mapped(
                name=self.target,
                shape=(ends[-1], self.width),
                sources=tuple(name for part in parts for name in part.parts),
                precision=self.precision,
                read=lambda start, stop: widen(bits(start, stop), dtype).reshape(-1, self.width),
                dtype=dtype,
                read_bits=bits,
            )
        ]
