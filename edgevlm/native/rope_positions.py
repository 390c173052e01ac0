"""Rotary positions of a text model's graph that are others than those that llama.cpp gives it.

They are an input of the graph, `inp_pos` (src/llama-graph.cpp), filled before it runs: it is
written anew when the first rotation asks for it. Two kinds of models need that:

- Images laid out on a canvas (MiniCPM-V 4.7). llama.cpp takes the positions of a batch for two
  things: what rotary embeddings turn by, and, in the cache, which tokens came before which
  (src/llama-kv-cache.cpp: of equal times the row decides, then the column). Tokens that share a
  time and go back in rows and columns would not see each other. So the cache gets positions in the
  order of reading, and rotations get others.
- Text with four positions (HunYuanVL). llama.cpp takes one position a token and makes four of it,
  the last of them 0, because the models with sections that it began with have three.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.devices import devices
from edgevlm.native.ggml_tensor import (
    code_of,
    layout_fault,
    operation_code,
    tensor_name,
    tensor_source,
    write_i32,
)

_ROTATION, _INPUT = "ROPE", "inp_pos"


class RopePositions:
    """Writes the rotary positions of chosen graphs of one context; a watcher of its graphs.

    Attributes:
        fault: why tensors cannot be written; "" when they can.
        wanted: [n_positions, n_tokens] int32 for the graph that runs next; None: its batch's own.
    """

    def __init__(self) -> None:
        self.fault = layout_fault()
        self.wanted: NDArray[np.int32] | None = None
        self._rotation = code_of(_ROTATION)
        self._has_cards = any(device.kind != "cpu" for device in devices())
        self._written: set[int] = set()

    def begin(self) -> None:
        """Look for the positions of a graph."""
        self._written.clear()

    def see(self, node: int) -> bool:
        """Write the positions that this node rotates by, unless that was done.

        Returns:
            Whether more nodes may read them: each device has a copy of its own, filled at its turn.
        """
        if self.wanted is None:
            return False
        if operation_code(node) == self._rotation:
            self._write(tensor_source(node, 1), self.wanted)
        return self._has_cards or not self._written

    def _write(self, source: int | None, wanted: NDArray[np.int32]) -> None:
        if source is None or source in self._written or tensor_name(source) != _INPUT:
            return
        if write_i32(source, np.ascontiguousarray(wanted, dtype=np.int32).reshape(-1)):
            self._written.add(source)

    def end(self) -> None:
        """Check that they were there.

        Raises:
            RuntimeError: they were not: the model's graph has no such positions.
        """
        if self.wanted is not None and not self._written:
            raise RuntimeError(f"no node of the graph rotates by `{_INPUT}`")
