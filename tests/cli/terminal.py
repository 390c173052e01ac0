"""edgevlm at a pseudo-terminal: what a person types and sees; and engines that misbehave."""

from __future__ import annotations

import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

# Code for the engine's process, run before it serves.
ENDLESS = """
import time
from edgevlm.native.text_model import TextModel
def is_end(*_):
    time.sleep(0.01)
    return False
TextModel.is_end = is_end
"""
# Hangs in the middle of the answer, as a long computation in C does.
HANGING = """
import time
from edgevlm.runtime.vlm import VLM
def generate(self, *_, on_text, **__):
    on_text("word")
    time.sleep(600)
VLM.generate = generate
"""
ABORT = """
import os
from edgevlm.runtime.vlm import VLM
answer = VLM.generate
def generate(self, messages, *rest, **options):
    if "abort" in str(messages[-1].content):
        os.write(2, b"planted.c:42: GGML_ASSERT(planted) failed\\n")
        os.abort()
    return answer(self, messages, *rest, **options)
VLM.generate = generate
"""
_MAIN = """
import fcntl, sys, termios
from edgevlm.runtime import worker
try:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C at this terminal is ours
except OSError:
    pass
worker.COMMAND = {command!r}
from edgevlm.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def program(worker_code: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs edgevlm with an engine that runs `worker_code` first."""
    serve = "\nfrom edgevlm.runtime.worker_process import main\nmain()\n"
    command = (sys.executable, "-P", "-c", worker_code + serve)
    return [sys.executable, "-c", _MAIN.format(command=command), *map(str, arguments)]


# Colours, and what readline says to the terminal around a line (bracketed paste).
_STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?2004[hl]\r?")


class Terminal:
    """One run of edgevlm at a pseudo-terminal."""

    def __init__(
        self,
        *arguments: str | Path,
        worker_code: str = "",
        environment: Mapping[str, str] | None = None,
        columns: int = 80,
        stdout: Path | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave  # open until the end: the terminal's settings are looked at
        termios.tcsetwinsize(slave, (24, columns))
        self.before = termios.tcgetattr(slave)
        self.raw = ""
        self._seen = 0
        plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        out = slave if stdout is None else os.open(stdout, os.O_WRONLY | os.O_CREAT)
        self.process = subprocess.Popen(
            program(worker_code, "chat", *arguments),
            stdin=slave,
            stdout=out,
            stderr=slave,
            start_new_session=True,
            env={**plain, "TERM": "xterm", **(environment or {})},
        )
        if stdout is not None:
            os.close(out)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @property
    def text(self) -> str:
        """What was shown so far, styles left out."""
        return _STYLE.sub("", self.raw)

    def wait_for(self, *words: str, seconds: float = 60) -> str:
        """Read until every word was shown since the last call; return what was."""
        deadline = time.monotonic() + seconds
        while True:
            new = self.text[self._seen :]
            if all(word in new for word in words):
                break
            assert time.monotonic() < deadline, f"no {words} in {new!r}"
            self._read(0.2)
        shown = self.text[self._seen :]
        self._seen = len(self.text)
        return shown

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def press(self, key: str) -> None:
        """Press one key: "C" and "D" with Ctrl, "up", "tab"."""
        keys = {"C": b"\x03", "D": b"\x04", "up": b"\x1b[A", "tab": b"\t"}
        os.write(self._master, keys[key])

    def wait_for_answer(self, question: str) -> None:
        """Type a question and read until the answer has begun."""
        self.type(question)
        begun = re.compile(re.escape(question) + r"\n(loading the model again\n)?\s*\S")
        deadline = time.monotonic() + 60
        while not begun.search(self.text[self._seen :]):
            assert time.monotonic() < deadline, self.text[self._seen :]
            self._read(0.2)
        self._seen = len(self.text)

    def press_until(self, key: str, *words: str) -> str:
        """Press a key now and again until every word was shown; return what was.

        Two signals within a moment are one to a process, so a single press may be none.
        """
        for _ in range(60):
            self.press(key)
            with suppress(AssertionError):
                return self.wait_for(*words, seconds=1)
        raise AssertionError(f"no {words} in {self.text[self._seen :]!r}")

    def ask(self, text: str) -> str:
        """Type a line, and wait for the next prompt; return what was shown."""
        self.type(text)
        return self.wait_for(text, "\n> ")

    def leave(self) -> int:
        """Press Ctrl-D and return the exit status; the terminal must be as it was."""
        self.press("D")
        return self.ended()

    def ended(self) -> int:
        """Wait for the end and return the exit status; the terminal must be as it was."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self._read(0.1)
        self._read(0.1)
        assert termios.tcgetattr(self._slave) == self.before
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to edgevlm alone."""
        self.process.send_signal(number)

    def _read(self, seconds: float) -> None:
        if not select.select([self._master], [], [], seconds)[0]:
            return
        try:
            data = os.read(self._master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return
        self.raw += data.decode(errors="replace").replace("\r\n", "\n")
