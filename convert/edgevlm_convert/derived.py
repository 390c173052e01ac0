"""Tensors that the checkpoint does not hold as they are: computed row by row from what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ConversionError
from edgevlm_convert.json_file import quoted
from edgevlm_convert.safetensors import Bits, SourceTensor, widen

# (start, stop) -> float32 rows [stop - start, row length] of the 2-D view.
Rows = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class DerivedTensor(SourceTensor):
    """A tensor of float32 rows that are computed when they are asked for.

    Attributes:
        rows: computes them; thread-safe.
        made_of: names of the tensors that it is computed from.
    """

    rows: Rows
    made_of: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """See SourceTensor."""
        return self.made_of

    def bits(self, start: int, stop: int) -> Bits:
        """See SourceTensor: the bits of float32 values.

        Raises:
            ConversionError: a NaN or an Inf was computed.
        """
        width = self.shape[-1] if self.shape else 1
        first, last = start // width, -(-stop // width)
        values = np.ascontiguousarray(self.rows(first, last), dtype=np.float32).reshape(-1)
        values = values[start - first * width : stop - first * width]
        if not np.isfinite(values).all():
            where = int(np.argmin(np.isfinite(values)))
            raise ConversionError(
                f"tensor {quoted(self.name)} holds {values[where]} at element {start + where}",
                hint="its scales or its adapter are damaged, or of another model",
            )
        return values.view(np.uint32)


def derived(
    base: SourceTensor, rows: Rows, *, more: tuple[SourceTensor, ...] = ()
) -> DerivedTensor:
    """Return a tensor of `base`'s name and shape whose rows are computed.

    Args:
        base: what it stands for.
        rows: computes its rows.
        more: what else it is made of.
    """
    return DerivedTensor(
        name=base.name,
        dtype="F32",
        shape=base.shape,
        path=base.path,
        offset=base.offset,
        rows=rows,
        made_of=(*base.parts, *(part for tensor in more for part in tensor.parts)),
    )


def float_rows(tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Return rows [start, stop) of the 2-D view as float32.

    Args:
        tensor: of dtype F32, F16 or BF16.
        start: first row.
        stop: row behind the last.
    """
    width = tensor.shape[-1] if tensor.shape else 1
    bits = tensor.bits(start * width, stop * width)
    return widen(bits, tensor.dtype).reshape(-1, width)
