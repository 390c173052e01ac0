"""Rows of a vision tower with a class token, taken in the order that it was trained with.

tools/mtmd/models/llava.cpp puts the class token behind the patches, and takes rows as if it stood
before them: the list `patches` of the rows that are handed over begins with the second patch and
ends with the class token, the list `positions` gives each patch the place of its neighbour. Both
lists are inputs of the graph, filled before it runs, so they are written anew when the first node
asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.native.ggml_tensor import (
    layout_fault,
    n_items,
    tensor_name,
    tensor_sources,
    write_i32,
)

_PATCHES, _POSITIONS = "patches", "positions"


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """Which lists of a graph are written anew.

    Attributes:
        patches: hand over the first patch to the last, not the second to the class token.
        positions: give the class token, which stands last, the first row of the position table, and
            the patches those behind it; a file whose table was rotated needs none of this.
    """

    patches: bool = False
    positions: bool = False


class TokenRows:
    """Writes the lists of each graph of one projector; a watcher of its graphs.

    Args:
        order: what is written.

    Attributes:
        fault: why tensors cannot be written; "" when they can.
    """

    def __init__(self, order: RowOrder) -> None:
        self.fault = layout_fault()
        wanted = {_PATCHES: order.patches, _POSITIONS: order.positions}
        self._names = frozenset(name for name, is_wanted in wanted.items() if is_wanted)
        self._missing: set[str] = set()

    def begin(self) -> None:
        """Look for the lists of a graph."""
        self._missing = set(self._names)

    def see(self, node: int) -> bool:
        """Write a list if this node reads it, and none before did."""
        if not self._missing:
            return False
        for source in tensor_sources(node):
            name = tensor_name(source)
            if name in self._missing:
                self._write(name, source)
        return bool(self._missing)

    def _write(self, name: str, source: int) -> None:
        rows = np.arange(n_items(source), dtype=np.int32)
        if write_i32(source, np.roll(rows, -1) if name == _POSITIONS else rows):
            self._missing.discard(name)

    def end(self) -> None:
        """Check that both lists were there.

        Raises:
            RuntimeError: one was not: the graph is another than the one that was asked.
        """
        if self._missing:
            raise RuntimeError(f"no node of the graph reads {sorted(self._missing)}")
