"""All four rotary positions of text tokens, for models that were trained with four (HunYuanVL).

llama.cpp takes one position a token and makes four of it, the last of them 0 (src/llama-graph.cpp,
`llm_graph_input_pos`), because the models with sections that it began with have three. The list is
an input of the graph, filled before it runs: the last quarter is written anew when the first
rotation asks for it.
"""

from __future__ import annotations

import numpy as np

from edgevlm.errors import ModelLoadError
from edgevlm.native.devices import devices
from edgevlm.native.ggml_tensor import (
    code_of,
    layout_fault,
    operation_code,
    read_rows,
    tensor_name,
    tensor_source,
    write_i32,
)

_ROTATION, _NAME, _N_POSITIONS = "ROPE", "inp_pos", 4


class TextPositions:
    """Writes the positions of each graph over tokens of one context; a watcher of its graphs."""

    def __init__(self) -> None:
        fault = layout_fault()
        if fault:
            raise ModelLoadError(
                "llama.cpp gives text tokens other positions than this model was trained with,"
                f" which cannot be mended: {fault}",
                hint="install the llama-cpp-python that edgevlm names",
            )
        self._rotation = code_of(_ROTATION)
        self._has_cards = any(device.kind != "cpu" for device in devices())
        self._written: set[int] = set()

    def begin(self) -> None:
        """Look for the positions of a graph."""
        self._written.clear()

    def see(self, node: int) -> bool:
        """Write the positions that this node rotates by, unless that was done."""
        if operation_code(node) == self._rotation:
            self._write(tensor_source(node, 1))
        # Each device has a copy of its own.
        return self._has_cards or not self._written

    def _write(self, source: int | None) -> None:
        if source is None or source in self._written or tensor_name(source) != _NAME:
            return
        found = read_rows(source, np.int32)
        if found is None or found.size % _N_POSITIONS:
            return
        quarters = found.reshape(_N_POSITIONS, -1).astype(np.int32)
        quarters[-1] = quarters[0]
        if write_i32(source, np.ascontiguousarray(quarters).reshape(-1)):
            self._written.add(source)

    def end(self) -> None:
        """Check that they were there.

        Raises:
            RuntimeError: they were not: the graph is another than the one that is known.
        """
        if not self._written:
            raise RuntimeError(f"no node of the graph rotates by `{_NAME}`")
