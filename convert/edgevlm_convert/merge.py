"""The rule Merge: several source tensors become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.rules import Mapped, Precision, Shape
from edgevlm_convert.safetensors import SourceTensor, widen


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Several source tensors, stacked along their first axis in the order given."""

    sources: Mapping[str, Shape]
    target: str
    precision: Precision = "matrix"
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return dict(self.sources)

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        parts = [tensors[name] for name in self.sources]
        row_shape = parts[0].shape[1:]
        shape = (sum(part.shape[0] for part in parts), *row_shape)
        row_length = shape[-1]

        def read(start: int, stop: int) -> NDArray[np.float32]:
            pieces: list[NDArray[np.float32]] = []
            first = 0
            for part in parts:
                n_rows = part.n_values // row_length
                low, high = max(start - first, 0), min(stop - first, n_rows)
                if low < high:
                    bits = part.bits(low * row_length, high * row_length)
                    pieces.append(widen(bits, part.dtype))
                first += n_rows
            return np.concatenate(pieces).reshape(-1, row_length)

        return [
            Mapped(
                name=self.target,
                shape=shape,
                sources=tuple(name for part in parts for name in part.parts),
                precision=self.precision,
                read=read,
            )
        ]
