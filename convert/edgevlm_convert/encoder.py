"""What the converter asks of a quantizer: the TensorEncoder protocol.

`edgevlm.quantize` implements it; the converter itself knows only the float types.
Tensor types are named as ggml names them in capitals: "F32", "F16", "BF16", "Q8_0", "Q4_K" ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor as it will stand in the GGUF file.

    Attributes:
        name: GGUF name, such as `blk.0.attn_v.weight`.
        shape: outermost dimension first (numpy order); the last one is the row length.
        type: the type it has before the encoder is asked: "F32", "F16" or "BF16".
    """

    name: str
    shape: tuple[int, ...]
    type: str


class TensorEncoder(Protocol):
    """Chooses a tensor type for every tensor of a file, then encodes rows."""

    def shapes(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> Mapping[str, tuple[int, ...]]:
        """Return by name the shapes of vectors and matrices that grow by zeros at their ends.

        Called once, before `plan`, which is given the tensors as they have grown.
        """
        ...

    def plan(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> tuple[dict[str, str], dict[str, object]]:
        """Return the type of every tensor by name, and the metadata keys to set or replace.

        Called once, before the header is written: a mixture needs all names, the layer count and
        whether the output is tied. A tensor whose type stays as it is keeps its bytes.
        """
        ...

    def n_bytes(self, shape: tuple[int, ...], type: str, /) -> int:
        """Return the size of a tensor of `shape` (numpy order) in `type`."""
        ...

    def encode(
        self, info: TensorInfo, rows: NDArray[np.float32], type: str, /, *, first_row: int
    ) -> bytes:
        """Encode float32 rows [n_rows, row_length] as blocks of `type`. Thread-safe.

        Args:
            info: the tensor that they belong to.
            rows: C-contiguous float32.
            type: the tensor type that `plan` returned.
            first_row: which row of the tensor `rows` begins with.
        """
        ...
