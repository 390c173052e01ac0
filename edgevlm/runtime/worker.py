"""The engine in a process of its own.

llama.cpp answers a broken assumption with abort(), and the system answers too large a model with
SIGKILL. In a worker process either is an EdgeVLMError that quotes what was logged last, and the
terminal, which the worker never touches, stays as it was. A worker that died, or was killed in the
middle of an answer, is started again by the next call.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from edgevlm.errors import EdgeVLMError, EngineError, ModelLoadError
from edgevlm.runtime import wire
from edgevlm.runtime.wire import Frame

if TYPE_CHECKING:
    from edgevlm.native.devices import Device
    from edgevlm.native.text_context import FlashAttention, KVType
    from edgevlm.runtime.answer import Answer, ContextPolicy, ImageCost
    from edgevlm.runtime.layout import Pixels
    from edgevlm.runtime.prompt import Message
    from edgevlm.runtime.sampling import SamplingParams

# -P: a file called numpy.py in the current folder is not what the engine should import.
COMMAND = (sys.executable, "-P", "-m", "edgevlm.runtime.worker_process")
# What each request does, for the error that ends it.
_DOING = {
    "devices": "looking for devices",
    "open": "loading the model",
    "count_visual_tokens": "counting visual tokens",
    "generate": "answering",
}
_N_QUOTED_LINES = 4
_POLL_SECONDS = 0.05
_LEAVE_SECONDS = 2.0
# By exit status as subprocess gives it: minus the signal's number.
_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGABRT: "the model file or llama.cpp itself is at fault: `--verbose` shows all it logs",
    signal.SIGILL: "llama.cpp was built for another processor: build llama-cpp-python here",
}
if hasattr(signal, "SIGKILL"):
    _SIGNAL_HINTS[signal.SIGKILL] = (
        "memory may have run out: use a smaller level or a smaller `--ctx`"
    )
_OTHER_HINT = "run again with `--verbose` to see all that llama.cpp logs"

log = logging.getLogger("edgevlm.native")


class _Process:
    """One running worker: its pipes, read by two threads, and its end."""

    def __init__(self) -> None:
        # What the engine logs is only kept, and abort() need not start a debugger to be quoted.
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        with _interrupts_blocked():
            self._popen = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                bufsize=0,
            )
        self.pid = self._popen.pid
        # None: no more will come.
        self.events: SimpleQueue[Frame | wire.FrameError | None] = SimpleQueue()
        self._log: deque[str] = deque(maxlen=_N_QUOTED_LINES)
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for thread in self._readers:
            thread.start()

    def send(self, kind: str, values: dict[str, Any], bodies: Sequence[memoryview] = ()) -> None:
        """Send a request; a worker that is gone is seen when the reply is awaited."""
        if kind in _DOING:
            self._log.clear()  # what was logged before has no part in how this one ends
        with suppress(BrokenPipeError):
            wire.send(_pipe(self._popen.stdin).fileno(), kind, values, bodies)

    def close(self, *, kill: bool = False) -> int:
        """End the process; return its exit status."""
        if kill:
            self._popen.kill()
        with suppress(OSError):
            _pipe(self._popen.stdin).close()  # the worker ends with its stdin
        try:
            status = self._popen.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        for thread in self._readers:
            thread.join(_LEAVE_SECONDS)
        # A pipe that is still read belongs to its thread: closing it would hand the number on.
        if not any(thread.is_alive() for thread in self._readers):
            _pipe(self._popen.stdout).close()
            _pipe(self._popen.stderr).close()
        return status

    def death(self, request: str) -> EdgeVLMError:
        """Return the error for a worker that ended by itself in the middle of a request."""
        status = self.close()
        how = f"exit status {status}"
        hint = _OTHER_HINT
        if status < 0:
            number = -status
            # Real-time signals have no names.
            known = number in {one.value for one in signal.Signals}
            how = signal.Signals(number).name if known else f"signal {number}"
            hint = _SIGNAL_HINTS.get(number, _OTHER_HINT)
        quoted = "".join(f"\n  {line}" for line in self._log)
        message = f"llama.cpp ended its process while {_DOING[request]} ({how})"
        message += f"; its last lines:{quoted}" if quoted else ""
        kind = ModelLoadError if request == "open" else EngineError
        return kind(message, hint=hint)

    def _read_events(self) -> None:
        try:
            for frame in wire.frames(_pipe(self._popen.stdout).fileno()):
                self.events.put(frame)
        except wire.FrameError as error:
            self.events.put(error)
        self.events.put(None)

    def _read_log(self) -> None:
        for raw in _pipe(self._popen.stderr):
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._log.append(line)
                log.debug("%s", line)


class Worker:
    """A loaded model in a process of its own. Made by `open_worker`; used from one thread."""

    def __init__(self) -> None:
        self._process: _Process | None = _Process()
        self._options: dict[str, Any] | None = None
        self._opened: dict[str, Any] = {}

    def open(self, options: dict[str, Any]) -> None:
        """Load the model that `open_worker` was given."""
        self._options = options
        self._load()

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds, prompt and answer together."""
        return self._opened["n_ctx"]

    @property
    def n_vocab(self) -> int:
        """Number of tokens of the vocabulary."""
        return self._opened["n_vocab"]

    @property
    def sampling_defaults(self) -> dict[str, float | int]:
        """What the file says how to sample (`general.sampling.*`), by SamplingParams' names."""
        return dict(self._opened["sampling_defaults"])

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while none runs."""
        return self._process.pid if self._process is not None else None

    def devices(self) -> tuple[Device, ...]:
        """Return the devices that llama.cpp sees, before a model is loaded."""
        from edgevlm.native.devices import Device

        return tuple(Device(**one) for one in self._ask("devices", {})["value"])

    def count_visual_tokens(self, width: int, height: int) -> int:
        """Return how many tokens an image of this size costs; nothing is encoded."""
        self._running()
        return self._ask("count_visual_tokens", {"width": width, "height": height})["value"]

    def generate(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Pixels] = (),
        *,
        params: SamplingParams | None = None,
        think: bool | None = None,
        context_policy: ContextPolicy = "error",
        should_stop: Callable[[], bool] = lambda: False,
        on_images: Callable[[Sequence[ImageCost]], None] = lambda _: None,
        on_text: Callable[[str], None] = lambda _: None,
        on_reasoning: Callable[[str], None] = lambda _: None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Answer a question or go on with a conversation, as `VLM.generate` does.

        `should_stop` is asked several times a second. An exception out of a callback, and Ctrl-C,
        kill the worker; the next call starts another.

        Raises:
            EdgeVLMError: what `VLM.generate` raises; or the process ended.
        """
        from edgevlm.runtime.prompt import conversation
        from edgevlm.runtime.sampling import SamplingParams

        values, bodies = wire.messages_out(conversation(prompt, images))
        request = {
            "messages": values,
            "params": asdict(params if params is not None else SamplingParams()),
            "think": think,
            "context_policy": context_policy,
        }
        events: dict[str, Callable[[dict[str, Any]], None]] = {
            "images": lambda said: on_images(wire.costs_in(said["costs"])),
            "text": lambda said: on_text(said["text"]),
            "reasoning": lambda said: on_reasoning(said["text"]),
            "note": lambda said: on_note(said["text"]),
        }
        self._running()
        said = self._ask("generate", request, bodies, events=events, should_stop=should_stop)
        return wire.answer_in(said)

    def close(self, *, kill: bool = False) -> None:
        """End the process; nothing is left of it, not even a zombie."""
        process, self._process = self._process, None
        if process is not None:
            process.close(kill=kill)

    def _running(self) -> None:
        """Start the process and load the model, unless that was done."""
        if self._process is None:
            self._process = _Process()
            self._load()

    def _load(self) -> None:
        if self._options is None:
            raise RuntimeError("the worker was started, and no model opened")
        # INFO is not shown, but what came last is quoted when the process dies.
        level = min(log.getEffectiveLevel(), logging.INFO)
        try:
            self._opened = self._ask("open", {**self._options, "log_level": level})
        except EdgeVLMError:
            self.close()
            raise

    def _ask(
        self,
        kind: str,
        values: dict[str, Any],
        bodies: Sequence[memoryview] = (),
        *,
        events: Mapping[str, Callable[[dict[str, Any]], None]] = MappingProxyType({}),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Send a request, hand its events on, and return what the reply says."""
        process = self._process
        if process is None:
            raise RuntimeError("the worker is closed")
        try:
            process.send(kind, values, bodies)
            frame = _reply(process, events, should_stop)
        except BaseException:
            # Ctrl-C, or a callback that failed: what the worker still says belongs to nobody.
            self.close(kill=True)
            raise
        if frame is None:
            self._process = None
            raise process.death(kind)
        if frame.kind == "error":
            raise wire.error_in(frame.values)
        if frame.kind == "bug":
            self.close(kill=True)
            raise RuntimeError(f"a bug in the engine's process\n{frame.values['traceback']}")
        return frame.values


def _reply(
    process: _Process,
    events: Mapping[str, Callable[[dict[str, Any]], None]],
    should_stop: Callable[[], bool],
) -> Frame | None:
    """Hand events on until the reply comes; None when the process ended instead."""
    cancelled = False
    while True:
        if not cancelled and should_stop():
            process.send("cancel", {})
            cancelled = True
        try:
            frame = process.events.get(timeout=_POLL_SECONDS)
        except Empty:
            continue
        if isinstance(frame, wire.FrameError):
            raise frame
        if frame is None or frame.kind not in events:
            return frame
        events[frame.kind](frame.values)


@contextmanager
def open_worker(
    *,
    model: Path,
    mmproj: Path | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    kv_type: KVType = "F16",
    flash_attention: FlashAttention = "auto",
    strict: bool = False,
    chat_template: str | None = None,
    started: Worker | None = None,
) -> Generator[Worker]:
    """Load a model as `open_vlm` does, in a process that ends when the block ends.

    Args:
        model: this and what follows: see `open_vlm`.
        mmproj: see there.
        n_ctx: see there.
        n_threads: see there.
        device: see there.
        gpu_layers: see there.
        kv_type: see there.
        flash_attention: see there.
        strict: see there.
        chat_template: see there.
        started: of `start_worker`, to save the time that the process takes to start.

    Raises:
        EdgeVLMError: what `open_vlm` raises.
        ModelLoadError: also when the process ended while it loaded.
    """
    worker = started if started is not None else Worker()
    try:
        worker.open(
            {
                "model": str(model),
                "mmproj": None if mmproj is None else str(mmproj),
                "n_ctx": n_ctx,
                "n_threads": n_threads,
                "device": device,
                "gpu_layers": gpu_layers,
                "kv_type": kv_type,
                "flash_attention": flash_attention,
                "strict": strict,
                "chat_template": chat_template,
            }
        )
        yield worker
    finally:
        worker.close()


@contextmanager
def start_worker() -> Generator[Worker]:
    """Start a worker's process for `open_worker(..., started=worker)`.

    It imports what it needs while the caller finds out what to load.
    """
    worker = Worker()
    try:
        yield worker
    finally:
        worker.close(kill=True)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the worker was started without pipes")
    return pipe


@contextmanager
def _interrupts_blocked() -> Generator[None]:
    """Start a child with SIGINT blocked, until it ignores it; here a Ctrl-C comes a bit later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
