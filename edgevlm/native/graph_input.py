"""The pixels that a vision tower was given: the input of its graph, read while it is encoded.

libmtmd keeps the image that it resized, cut and normalised to itself. The graph's input holds it
under the name `inp_raw` (tools/mtmd/clip.cpp, `build_inp_raw`), and ggml's scheduler asks about
every node before it computes the first one (ggml-backend.cpp, `cb_eval`). The first node that
reads the input is where it is copied. The answer is always that nobody needs the node's result:
the graph then runs in one piece, as it does without a callback.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.ggml_tensor import layout_fault, read_f32, tensor_name, tensor_sources
from edgevlm.native.library import load_library

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
    """Copies the input of each graph of one projector. Lives as long as the projector's context.

    Use `install` before the context is made, `start` before an image, `one_graph` around each of
    its encodes, then `seen`.
    """

    def __init__(self) -> None:
        self._fault = layout_fault()
        # The C side keeps a bare pointer to it.
        self._callback: Any = load_library().llama.ggml_backend_sched_eval_callback(self._asked)
        self._looking = False
        self._tiles: list[NDArray[np.float32]] = []
        self._not_seen = self._fault
        self._error: BaseException | None = None

    def install(self, params: Any) -> None:
        """Put the callback into the parameters of a context, unless tensors cannot be read."""
        if not self._fault:
            params.cb_eval = self._callback

    def start(self) -> None:
        """Forget the image before."""
        self._tiles, self._not_seen, self._error = [], self._fault, None

    @contextmanager
    def one_graph(self) -> Generator[None]:
        """Look for the input of the graph that runs inside the block.

        Raises:
            Exception: what came up in the callback, once the graph is through.
        """
        self._looking = True
        yield
        if self._looking and not self._fault:
            self._not_seen = f"no node of the graph reads `{INPUT_NAME}` as float32"
        self._looking = False
        if self._error is not None:
            raise self._error

    def seen(self) -> GraphInput:
        """Return the input of all encodes since `start`."""
        tiles = () if self._not_seen else tuple(self._tiles)
        return GraphInput(tiles=tiles, not_seen=self._not_seen)

    def _asked(self, node: int, ask: bool, _: object) -> bool:
        # An exception cannot cross C: ctypes would print it and answer False. Asked in advance
        # ("ask"), False means no interest; asked afterwards, it would end the graph.
        try:
            if ask and self._looking:
                self._look_at(node)
        except BaseException as error:
            self._looking, self._error = False, error
        return not ask

    def _look_at(self, node: int) -> None:
        for source in tensor_sources(node):
            if tensor_name(source) != INPUT_NAME:
                continue
            values = read_f32(source)
            if values is not None:
                self._tiles.extend(values)
                self._looking = False
                return
