"""The pixels that a vision tower was given: the input of its graph, read while it is encoded.

libmtmd keeps the image that it resized, cut and normalised to itself. The graph's input holds it
under the name `inp_raw` (tools/mtmd/clip.cpp, `build_inp_raw`). The first node that reads the input
is where it is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.ggml_tensor import layout_fault, read_f32, tensor_name, tensor_sources

INPUT_NAME = "inp_raw"


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """What a vision tower was given for one image.

    Attributes:
        tiles: pixels after resizing and normalising, one [3, height, width] float32 an encode, in
            the order of the embeddings; empty where they could not be seen.
        not_seen: why they could not be seen; "" when they were.
    """

    tiles: tuple[NDArray[np.float32], ...]
    not_seen: str


class InputObserver:
    """Copies the input of each graph of one projector; a watcher of its graphs.

    Use `start` before an image, then `seen`.

    Attributes:
        fault: why tensors cannot be read; "" when they can.
    """

    def __init__(self) -> None:
        self.fault = layout_fault()
        self._looking = False
        self._tiles: list[NDArray[np.float32]] = []
        self._not_seen = self.fault

    def start(self) -> None:
        """Forget the image before."""
        self._tiles, self._not_seen = [], self.fault

    def seen(self) -> GraphInput:
        """Return the input of all encodes since `start`."""
        tiles = () if self._not_seen else tuple(self._tiles)
        return GraphInput(tiles=tiles, not_seen=self._not_seen)

    def begin(self) -> None:
        """Look for the input of a graph."""
        self._looking = True

    def see(self, node: int) -> bool:
        """Copy the input if this node reads it, and none before did."""
        if self._looking:
            self._look_at(node)
        return self._looking

    def end(self) -> None:
        """Note where the input was not found."""
        if self._looking:
            self._not_seen = f"no node of the graph reads `{INPUT_NAME}` as float32"
        self._looking = False

    def _look_at(self, node: int) -> None:
        for source in tensor_sources(node):
            if tensor_name(source) != INPUT_NAME:
                continue
            values = read_f32(source)
            if values is not None:
                self._tiles.extend(values)
                self._looking = False
                return
