"""Rotary positions of a text model's graph that are others than those of its KV cache.

llama.cpp takes the positions of a batch for two things: what rotary embeddings turn by, and, in the
cache, which tokens came before which (src/llama-kv-cache.cpp: of equal times the row decides, then
the column). Tokens that share a time and go back in rows and columns, as slices of an image that
lies below, would not see each other. So the cache gets positions in the order of reading, and the
graph's input `inp_pos` (src/llama-graph.cpp) is written anew when a node asks for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.ggml_tensor import layout_fault, tensor_name, tensor_sources, write_i32

_INPUT = "inp_pos"


class RopePositions:
    """Writes the rotary positions of chosen graphs of one context; a watcher of its graphs.

    Attributes:
        fault: why tensors cannot be written; "" when they can.
        wanted: [n_positions, n_tokens] int32 for the graph that runs next; None: its batch's own.
    """

    def __init__(self) -> None:
        self.fault = layout_fault()
        self.wanted: NDArray[np.int32] | None = None
        self._is_written = False

    def begin(self) -> None:
        """Wait for the input."""
        self._is_written = False

    def see(self, node: int) -> bool:
        """Write the input if this node reads it: each device has a copy, filled at its turn.

        Returns:
            Whether more nodes may read it.
        """
        if self.wanted is None:
            return False
        for source in tensor_sources(node):
            if tensor_name(source) == _INPUT:
                values = np.ascontiguousarray(self.wanted, dtype=np.int32).reshape(-1)
                self._is_written |= write_i32(source, values)
        return True

    def end(self) -> None:
        """Check that the input was there.

        Raises:
            RuntimeError: it was not: the model's graph has no such positions.
        """
        if self.wanted is not None and not self._is_written:
            raise RuntimeError(f"no node of the graph reads `{_INPUT}`")
