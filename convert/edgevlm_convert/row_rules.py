"""A matrix without its first rows: a position table whose class token has no use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
