"""Rows of zeros that a file must have and no checkpoint does: PaddedRows, zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.rules import Mapped, Precision, Shape
from edgevlm_convert.safetensors import Bits, SourceTensor, widen


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """A matrix with rows of zeros behind its own.

    Attributes:
        source: name of a matrix.
        shape: of the source, [rows, columns].
        n_rows: of the target, as many as the source's or more.
        target: GGUF name.
    """

    source: str
    shape: Shape
    n_rows: int
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
        n_own, width = self.shape

        def bits(start: int, stop: int) -> Bits:
            first, last = min(start, n_own), min(stop, n_own)
            own = tensor.bits(first * width, last * width)
            if last == stop:
                return own
            return np.concatenate([own, np.zeros((stop - start) * width - own.size, own.dtype)])

        return [
            Mapped(
                name=self.target,
                shape=(self.n_rows, width),
                sources=tensor.parts,
                precision=self.precision,
                read=lambda start, stop: widen(bits(start, stop), tensor.dtype).reshape(-1, width),
                dtype=tensor.dtype,
                read_bits=bits,
            )
        ]


def zeros(name: str, shape: Shape) -> Mapped:
    """Return a tensor of zeros, which nothing reads and llama.cpp does not load a file without.

    Args:
        name: GGUF name.
        shape: outermost dimension first.
    """
    width = shape[-1]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return np.zeros((stop - start, width), dtype=np.float32)

    return Mapped(name=name, shape=shape, sources=(), precision="matrix", read=read)
