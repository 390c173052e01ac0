"""A position table scaled down with smoothing, as SAM's tower in DeepSeek-OCR was trained.

tools/mtmd/models/deepseekocr.cpp scales the table to a tile with ggml's bicubic mode, which looks
at four neighbours whatever it scales to (ggml-cpu/ops.cpp; its smoothing is for the bilinear mode
alone). The model was trained with a kernel that grows with the step, of another sharpness
(`antialias=True` of torch). What ggml has computed is written anew before the graph goes on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.ggml_tensor import (
    layout_fault,
    operation,
    parameter,
    read_f32,
    tensor_source,
    weight_shape,
    write_f32,
)

_SCALE, _MODE_BITS, _BICUBIC = "UPSCALE", 0xFF, 2  # enum ggml_scale_mode of ggml.h
# Of Keys' kernel; torch takes another, -0.75, where it does not smooth.
_SHARPNESS = -0.5


class SmoothTable:
    """Scales tables of each graph of one projector; told of nodes once they are computed.

    Attributes:
        fault: why nodes cannot be changed; "" when they can.
    """

    def __init__(self) -> None:
        self.fault = layout_fault()

    def begin(self) -> None:
        """Nothing: a table of the image's own size is not scaled."""

    def wants(self, node: int) -> bool:
        """Return whether a node scales with the bicubic mode."""
        return operation(node) == _SCALE and parameter(node, 0) & _MODE_BITS == _BICUBIC

    def computed(self, node: int) -> None:
        """Write the values of a node that was computed.

        Raises:
            RuntimeError: it is another kind of tensor than the graph is known to have.
        """
        source = tensor_source(node, 0)
        table = read_f32(source) if source is not None else None
        if table is None:
            raise RuntimeError("a position table is not there as float32")
        _, _, height, width = weight_shape(node)
        if not write_f32(node, smoothed(table, height, width)):
            raise RuntimeError("a scaled position table cannot be written")


def smoothed(table: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return a table scaled as torch's `interpolate(mode="bicubic", antialias=True)` does.

    Args:
        table: [..., rows, columns] float32.
        height: rows of the result.
        width: columns of the result.
    """
    down, across = (
        _weights(size, to) for size, to in zip(table.shape[-2:], (height, width), strict=True)
    )
    return np.ascontiguousarray(down @ (table.astype(np.float64) @ across.T), dtype=np.float32)


def _weights(size: int, to: int) -> NDArray[np.float64]:
    """Return [to, size]: what each place of the result takes of each of the source."""
    step = size / to
    reach = max(step, 1.0)
    centres = (np.arange(to) + 0.5) * step
    distance = np.abs((np.arange(size) + 0.5)[None] - centres[:, None]) / reach
    a = _SHARPNESS
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
