"""Position tables scaled down with smoothing, as the towers of DeepSeek-OCR were trained.

tools/mtmd/models/deepseekocr.cpp scales the table to a tile with ggml's bicubic mode, which looks
at four neighbours whatever it scales to (ggml-cpu/ops.cpp; its smoothing is for the bilinear mode
alone). The model was trained with a kernel that grows with the step, of another sharpness
(`antialias=True` of torch). What ggml has computed is written anew before the graph goes on.

CLIP's table behind it has a class token's row, and is scaled there as if channels were columns of a
picture, the class token standing last: the joined table is written anew as a whole.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.ggml_tensor import (
    code_of,
    layout_fault,
    operation_code,
    parameter,
    read_f32,
    tensor_source,
    viewed,
    weight_shape,
    write_f32,
)

_SCALE, _JOIN = "UPSCALE", "CONCAT"
_MODE_BITS, _BICUBIC = 0xFF, 2  # enum ggml_scale_mode of ggml.h
# Of Keys' kernel; torch takes another, -0.75, where it does not smooth.
_SHARPNESS = -0.5


class SmoothTable:
    """Scales tables of each graph of one projector; told of nodes once they are computed.

    Attributes:
        fault: why nodes cannot be changed; "" when they can.
    """

    def __init__(self) -> None:
        self.fault = layout_fault()
        self._scale, self._join = code_of(_SCALE), code_of(_JOIN)

    def begin(self) -> None:
        """Nothing: a table of the image's own size is not scaled."""

    def wants(self, node: int) -> bool:
        """Return whether a node scales with the bicubic mode, or joins what was scaled so."""
        code = operation_code(node)
        if code == self._scale:
            return _is_bicubic(node)
        return code == self._join and self._is_joined_table(node)

    def _is_joined_table(self, node: int) -> bool:
        reshaped = tensor_source(node, 0)
        scaled = tensor_source(reshaped, 0) if reshaped is not None else None
        return scaled is not None and operation_code(scaled) == self._scale and _is_bicubic(scaled)

    def computed(self, node: int) -> None:
        """Write the values of a node that was computed.

        Raises:
            RuntimeError: it is another kind of tensor than the graph is known to have.
        """
        if operation_code(node) == self._join:
            values = _with_class_token(node)
        else:
            table = _read(tensor_source(node, 0))
            if table.shape[1] == 1:
                # CLIP's, [1, 1, patches, channels]: what is joined of it is written instead.
                return
            values = smoothed(table, *weight_shape(node)[-2:])
        if not write_f32(node, values):
            raise RuntimeError("a scaled position table cannot be written")


def _is_bicubic(node: int) -> bool:
    return parameter(node, 0) & _MODE_BITS == _BICUBIC


def _read(tensor: int | None) -> NDArray[np.float32]:
    table = read_f32(tensor) if tensor is not None else None
    if table is None:
        raise RuntimeError("a position table is not there as float32")
    return table


def _with_class_token(node: int) -> NDArray[np.float32]:
    """Return CLIP's table of a tile, [1, 1, 1 + patches, channels]: the class token's row first."""
    last = tensor_source(node, 1)
    rows = _read(viewed(last) if last is not None else None)[0, 0]
    side, to = math.isqrt(len(rows) - 1), math.isqrt(weight_shape(node)[2] - 1)
    picture = rows[1:].T.reshape(-1, side, side)
    scaled = smoothed(picture, to, to).reshape(len(picture), -1).T
    return np.ascontiguousarray(np.concatenate([rows[:1], scaled])[None, None])


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
