"""One callback of ggml's scheduler, for all that look at a context's graphs while they run.

ggml asks about every node before it computes it (ggml-backend.cpp, `cb_eval`). Where nobody needs
a node's result the graph runs in one piece, as it does without a callback; where somebody does, it
stops behind the node. Whatever happens there, the rest of the graph is computed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from edgevlm.native.library import load_library


class Watcher(Protocol):
    """What is told of each node of a graph."""

    def begin(self) -> None:
        """A graph is about to run."""
        ...

    def see(self, node: int) -> bool:
        """Look at one node, whose inputs are there and whose result is not.

        Returns:
            Whether it wants to see more nodes of this graph: once nobody does, none is shown.
        """
        ...

    def end(self) -> None:
        """The graph has run."""
        ...


class ResultWatcher(Protocol):
    """What is told of some nodes once they are computed."""

    def begin(self) -> None:
        """A graph is about to run."""
        ...

    def wants(self, node: int) -> bool:
        """Whether it wants to see a node, and what the node read, once that is computed."""
        ...

    def computed(self, node: int) -> None:
        """Look at a node whose result is there."""
        ...


class GraphCallback:
    """Shows the nodes of a context's graphs to watchers. Lives as long as the context.

    Use `install` before the context is made, `one_graph` around each of its encodes.

    Args:
        watchers: told of each node in this order.
        of_results: told of the nodes that they want. Without any watcher of either kind no callback
            is installed.
    """

    def __init__(
        self, watchers: Sequence[Watcher] = (), of_results: Sequence[ResultWatcher] = ()
    ) -> None:
        self._watchers = tuple(watchers)
        self._of_results = tuple(of_results)
        self._seeing, self._seeing_results = self._watchers, self._of_results
        # The C side keeps a bare pointer to it.
        self._callback: Any = load_library().llama.ggml_backend_sched_eval_callback(self._asked)
        self._is_watching = self._has_run = self._is_through = False
        self._error: BaseException | None = None

    def install(self, params: Any) -> None:
        """Put the callback into the parameters of a context."""
        if self._watchers or self._of_results:
            params.cb_eval = self._callback

    @contextmanager
    def one_graph(self, *, watchers: bool = True, results: bool = True) -> Generator[None]:
        """Show the graph that runs inside the block.

        Args:
            watchers: show it to those who are told of each node.
            results: show it to those who are told of results.

        Raises:
            Exception: what came up in a watcher, once the graph is through.
        """
        self._seeing = self._watchers if watchers else ()
        self._seeing_results = self._of_results if results else ()
        for watcher in (*self._seeing, *self._seeing_results):
            watcher.begin()
        self._is_watching, self._has_run, self._error = True, False, None
        self._is_through = False
        yield
        self._is_watching = False
        if self._error is not None:
            raise self._error
        # A graph that failed before its first node is the caller's error.
        for watcher in self._seeing if self._has_run else ():
            watcher.end()

    def _asked(self, node: int, ask: bool, _: object) -> bool:
        # An exception cannot cross C: ctypes would print it and answer False. Asked in advance
        # ("ask"), False means no interest; asked afterwards, it would end the graph.
        if self._is_through:
            return not ask
        try:
            self._has_run = True
            if self._is_watching:
                return self._show(node) if ask else self._show_result(node)
        except BaseException as error:
            self._is_watching, self._error = False, error
        return not ask

    def _show(self, node: int) -> bool:
        wants_more = bool(self._seeing_results)
        for watcher in self._seeing:
            wants_more |= watcher.see(node)
        self._is_through = not wants_more
        return any(watcher.wants(node) for watcher in self._seeing_results)

    def _show_result(self, node: int) -> bool:
        for watcher in self._seeing_results:
            if watcher.wants(node):
                watcher.computed(node)
        return True
