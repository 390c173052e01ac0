"""The engine's side of a worker: `python -m edgevlm.runtime.worker_process`, started by worker.py.

Requests come on stdin, events leave on what was stdout. libllama and libmtmd may print there, so
the descriptor is moved away first, and descriptor 1 becomes another name of stderr.

Ctrl-C belongs to the process at the terminal, which then sends "cancel". When that process ends,
for whatever reason, stdin ends with it, and so does this one, also in the middle of a computation.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from edgevlm.errors import EdgeVLMError
from edgevlm.runtime import wire
from edgevlm.runtime.wire import Frame

if TYPE_CHECKING:
    from pathlib import Path

    from edgevlm.runtime.answer import ImageCost
    from edgevlm.runtime.vlm import VLM


class _Inbox:
    """Reads requests in a thread of its own, so that "cancel" and the end are seen at once."""

    def __init__(self, descriptor: int) -> None:
        self.cancelled = threading.Event()
        self._descriptor = descriptor
        self._requests: SimpleQueue[Frame] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Frame:
        """Return the next request."""
        return self._requests.get()

    def _read(self) -> None:
        try:
            for frame in wire.frames(self._descriptor):
                if frame.kind == "cancel":
                    self.cancelled.set()
                else:
                    self._requests.put(frame)
        finally:
            # Nobody is left to answer. The main thread may be deep in C for a long time, and
            # freeing gigabytes page by page would help no one.
            os._exit(0)


class _Outbox:
    """Sends events."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, kind: str, **values: Any) -> None:
        """Send one event; without a reader the process ends."""
        try:
            wire.send(self._descriptor, kind, values)
        except OSError:
            os._exit(0)

    def text(self, text: str) -> None:
        """Send a piece of the answer."""
        self.send("text", text=text)

    def reasoning(self, text: str) -> None:
        """Send a piece of reasoning."""
        self.send("reasoning", text=text)

    def note(self, text: str) -> None:
        """Send what was done to the conversation."""
        self.send("note", text=text)

    def images(self, costs: Sequence[ImageCost]) -> None:
        """Send what the images cost."""
        self.send("images", costs=wire.costs_out(costs))


def main() -> None:
    """Open the model that the first request names, then answer the others until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = os.dup(1)
    os.dup2(2, 1)
    outbox = _Outbox(events)
    inbox = _Inbox(0)
    try:
        _serve(inbox, outbox)
    except EdgeVLMError as error:
        outbox.send("error", **wire.error_out(error))
    except Exception:
        outbox.send("bug", traceback=traceback.format_exc())


def _serve(inbox: _Inbox, outbox: _Outbox) -> None:
    # Before the first request: this may run while the parent finds out what to load.
    from edgevlm.native.devices import devices
    from edgevlm.native.library import load_library
    from edgevlm.runtime.vlm import open_vlm

    load_library()
    request = inbox.next()
    while request.kind == "devices":
        outbox.send("result", value=[asdict(one) for one in devices()])
        request = inbox.next()
    options = request.values
    _log_to_stderr(options.pop("log_level"))
    model = _path(options.pop("model"))
    mmproj = options.pop("mmproj")
    with open_vlm(model=model, mmproj=mmproj and _path(mmproj), **options) as vlm:
        outbox.send(
            "opened",
            n_ctx=vlm.n_ctx,
            n_vocab=vlm.n_vocab,
            sampling_defaults=vlm.sampling_defaults,
        )
        while True:
            request = inbox.next()
            inbox.cancelled.clear()
            try:
                _answer(request, vlm, inbox, outbox)
            except EdgeVLMError as error:
                outbox.send("error", **wire.error_out(error))


def _answer(request: Frame, vlm: VLM, inbox: _Inbox, outbox: _Outbox) -> None:
    from edgevlm.runtime.sampling import SamplingParams

    values = request.values
    if request.kind == "count_visual_tokens":
        outbox.send("result", value=vlm.count_visual_tokens(values["width"], values["height"]))
        return
    if request.kind != "generate":
        raise wire.FrameError(f"the request {request.kind!r} is unknown")
    answer = vlm.generate(
        wire.messages_in(values["messages"], request.body),
        params=SamplingParams(**values["params"]),
        think=values["think"],
        context_policy=values["context_policy"],
        should_stop=inbox.cancelled.is_set,
        on_images=outbox.images,
        on_text=outbox.text,
        on_reasoning=outbox.reasoning,
        on_note=outbox.note,
    )
    outbox.send("answer", **asdict(answer))


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def _log_to_stderr(level: int) -> None:
    """Write llama.cpp's log to stderr, whose last lines the parent keeps for an error."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("edgevlm").setLevel(level)


if __name__ == "__main__":
    main()
