"""A position table interpolated without smoothing, as PaddleOCR-VL's tower was trained.

tools/mtmd/models/paddleocr.cpp scales the table to the image with ggml's antialiasing bilinear mode
(clip-graph.h, `DEFAULT_INTERPOLATION_MODE`): an image of fewer rows or columns than the table, a
line of text, gets mixtures of more positions than transformers gives it. The mode is a bit of the
node's parameters, which ggml reads when it computes the node: it is cleared when ggml asks.
"""

from __future__ import annotations

from edgevlm.native.ggml_tensor import clear_parameter_bits, layout_fault, operation

_SCALE = "UPSCALE"
_ANTIALIAS = 1 << 9  # GGML_SCALE_FLAG_ANTIALIAS of ggml.h


class PlainScale:
    """Takes the smoothing out of each graph of one projector; a watcher of its graphs.

    Attributes:
        fault: why nodes cannot be changed; "" when they can.
    """

    def __init__(self) -> None:
        self.fault = layout_fault()

    def begin(self) -> None:
        """Nothing: a table of the image's own size is not scaled."""

    def see(self, node: int) -> bool:
        """Clear the bit of a node that scales."""
        if operation(node) == _SCALE:
            clear_parameter_bits(node, 0, _ANTIALIAS)
        return True

    def end(self) -> None:
        """Nothing: as `begin`."""
