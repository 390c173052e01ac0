"""Find llama.cpp's libraries once, check their version, and send their logs to `logging`.

Only the low-level modules of llama-cpp-python are executed: `llama_cpp/__init__.py` would also run
the high-level `Llama` (jinja2, diskcache, a global log callback), half of the import's time.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from edgevlm.errors import ModelLoadError

log = logging.getLogger("edgevlm.native")

MIN_VERSION = (0, 3, 36)
BELOW_VERSION = (0, 4)
_INSTALL_HINT = "install it with `pip install 'llama-cpp-python>=0.3.36,<0.4'`"

_REINSTALL = "reinstall it: `pip install --force-reinstall --no-cache-dir llama-cpp-python`"

# enum ggml_log_level of ggml.h; 5 continues the previous line.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUES = 5


@dataclass(frozen=True, kw_only=True)
class Library:
    """llama.cpp's libraries, loaded.

    Attributes:
        llama: the module `llama_cpp.llama_cpp` (libllama and parts of libggml).
        mtmd: the module `llama_cpp.mtmd_cpp` (libmtmd).
        ggml_base: libggml-base: tensor types and row kernels.
        ggml: libggml: the registry of devices.
        version: version of llama-cpp-python.
    """

    llama: Any
    mtmd: Any
    ggml_base: ctypes.CDLL
    ggml: ctypes.CDLL
    version: str


class _LazyPackage(ModuleType):
    """The package `llama_cpp` with its `__init__` put off until somebody asks it for a name."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader = self.__spec__ and self.__spec__.loader
        if loader is None:
            raise AttributeError(name)
        loader.exec_module(self)
        return getattr(self, name)


@cache
def load_library() -> Library:
    """Load llama.cpp's libraries; the first call costs the import, later ones nothing.

    Raises:
        ModelLoadError: llama-cpp-python is missing, of a version that was never tested, or
            its libraries do not load on this machine.
    """
    version = _checked_version()
    try:
        llama = _low_level("llama_cpp.llama_cpp")
        mtmd = _low_level("llama_cpp.mtmd_cpp")
        folder = Path(llama._lib._name).parent
        ggml_base = _shared(folder, "ggml-base")
        ggml = _shared(folder, "ggml")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelLoadError(
            f"llama-cpp-python {version} is installed, its libraries do not load: {error}",
            hint=_load_hint(str(error)),
        ) from error
    library = Library(llama=llama, mtmd=mtmd, ggml_base=ggml_base, ggml=ggml, version=version)
    # Without a handler of our own, `logging` would print warnings of the C code on stderr.
    log.addHandler(logging.NullHandler())
    _route_logs(library)
    llama.llama_backend_init()
    return library


def _load_hint(reason: str) -> str:
    """Return what to do about a library that the loader did not find or could not use."""
    if "libcuda.so" in reason:
        return (
            "it is built with CUDA and NVIDIA's driver is not here: install that, or " + _REINSTALL
        )
    if re.search(r"lib(cudart|cublas|cublasLt)\.so", reason):
        return (
            "it is built with CUDA, whose libraries are not found: add their folder to"
            " LD_LIBRARY_PATH (such as /usr/local/cuda/lib64)"
        )
    return _REINSTALL


def load_module(name: str) -> Any:
    """Return a low-level module of llama-cpp-python, such as "llama_cpp.llama_grammar".

    Raises:
        ModelLoadError: llama-cpp-python is missing, broken, or without that module.
    """
    version = load_library().version
    try:
        return _low_level(name)
    except ImportError as error:
        raise ModelLoadError(
            f"llama-cpp-python {version} has no module {name}: {error}", hint=_INSTALL_HINT
        ) from error


def _checked_version() -> str:
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        raise ModelLoadError("llama-cpp-python is not installed", hint=_INSTALL_HINT) from None
    check_version(version)
    return version


def check_version(version: str) -> None:
    """Raise ModelLoadError unless `version` of llama-cpp-python is in the tested range.

    The structures passed to C have another layout in other versions: a wrong one is no error
    message but a crash, so it is refused before the first call.
    """
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
    if numbers < MIN_VERSION or numbers >= BELOW_VERSION:
        raise ModelLoadError(
            f"llama-cpp-python {version} is installed, edgevlm works with >=0.3.36,<0.4",
            hint=_INSTALL_HINT,
        )


def _low_level(name: str) -> ModuleType:
    package = name.partition(".")[0]
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.loader is None:
            raise ImportError(f"no module named {package}")
        lazy = _LazyPackage(package)
        lazy.__spec__ = spec
        lazy.__loader__ = spec.loader
        lazy.__package__ = package
        lazy.__file__ = spec.origin
        lazy.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = lazy
    return importlib.import_module(name)


def _shared(folder: Path, name: str) -> ctypes.CDLL:
    for file in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll", f"lib{name}.dll"):
        if (folder / file).exists():
            return ctypes.CDLL(str(folder / file))
    raise OSError(f"no library {name!r} in {folder}")


class _LogSink:
    """Turns llama.cpp's stream of log pieces into whole lines for `logging`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._level = logging.DEBUG
        self._line = ""
        self.complaints: deque[str] = deque(maxlen=20)

    def write(self, level: int, text: bytes) -> None:
        with self._lock:
            if level != _CONTINUES:
                self._level = _LEVELS.get(level, logging.INFO)
            self._line += text.decode("utf-8", "replace")
            *lines, self._line = self._line.split("\n")
        for line in lines:
            if not line.strip():
                continue
            if self._level >= logging.ERROR:
                self.complaints.append(line.strip())
            log.log(self._level, "%s", line)


_sink = _LogSink()
# The C side keeps a bare pointer to the callback: this list keeps the Python side alive.
_callbacks: list[Any] = []


def _route_logs(library: Library) -> None:
    if not _callbacks:

        def receive(level: int, text: bytes, _: object) -> None:
            # An exception cannot cross C: it would be printed by ctypes, line after line.
            if text:
                _sink.write(level, text)

        _callbacks.append(library.llama.llama_log_callback(receive))
    library.llama.llama_log_set(_callbacks[0], None)  # also ggml's
    library.mtmd.mtmd_helper_log_set(_callbacks[0], None)  # also mtmd's and clip's


@contextmanager
def complaints() -> Generator[deque[str]]:
    """Collect the error lines that llama.cpp logs inside the block (the last 20)."""
    # `import llama_cpp` elsewhere puts the high-level package's own log callback in place.
    _route_logs(load_library())
    _sink.complaints.clear()
    with interrupts_deferred():
        yield _sink.complaints


@contextmanager
def interrupts_deferred() -> Generator[None]:
    """Put off Ctrl-C to the end of the block.

    Python handles a signal when it next runs Python code: in a library that logs, that is the
    log callback, and ctypes drops what a callback raises.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    arrived: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: arrived.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived:
        before(signal.SIGINT, arrived[0])


def because(lines: deque[str]) -> str:
    """Return ": reason" from llama.cpp's error lines, or nothing when it gave no reason."""
    if not lines:
        return ""
    # The first complaint is the cause, what follows is each caller reporting that it failed.
    reason = lines[0]
    head, _, tail = reason.partition(": ")
    return f": {tail if tail and ' ' not in head else reason}"
