"""The devices that the installed llama.cpp can run on."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgevlm.errors import ModelLoadError
from edgevlm.native.library import load_library

CARD_HINT = "the card is full: put fewer layers on it, `--gpu-layers N`, or use `--device cpu`"
DeviceKind = Literal["cpu", "gpu", "igpu", "accel", "meta"]
# enum ggml_backend_dev_type of ggml-backend.h.
_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "igpu", "accel", "meta")
# What a user calls it -> how the backend registers itself.
_BACKENDS = {"cuda": "CUDA", "metal": "MTL", "vulkan": "Vulkan"}
# What to look at when a build with CUDA sees no card.
UNSEEN_CARD = (
    "`nvidia-smi` must list the card, its driver be as new as the CUDA of the build, and"
    " CUDA_VISIBLE_DEVICES not hide it"
)
# ggml-cuda.cu, ggml-vulkan.cpp; then llama-model.cpp and ggml-alloc.c, which name the buffer.
_CARD_IS_FULL = re.compile(
    r"out of memory|OutOfDeviceMemory|(?:unable|failed) to allocate (?!CPU)\S+ buffer\b"
)
# Backends that llama-cpp-python can be built with, and their library's name.
_GPU_LIBRARIES = ("cuda", "metal", "vulkan", "hip", "sycl", "musa", "opencl", "cann", "rpc")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device of the installed llama.cpp.

    Attributes:
        name: such as "CPU" or "CUDA0".
        description: the processor's or card's own name.
        backend: such as "CPU", "CUDA", "MTL", "Vulkan".
        kind: "gpu" has memory of its own, "igpu" shares the machine's.
        total_n_bytes: its memory, 0 when unknown.
        free_n_bytes: free now, 0 when unknown.
    """

    name: str
    description: str
    backend: str
    kind: DeviceKind
    total_n_bytes: int
    free_n_bytes: int


@cache
def _registry() -> Any:
    ggml: Any = load_library().ggml
    for name, argtypes, restype in (
        ("ggml_backend_dev_count", [], ctypes.c_size_t),
        ("ggml_backend_dev_get", [ctypes.c_size_t], ctypes.c_void_p),
    ):
        function = getattr(ggml, name)
        function.argtypes = argtypes
        function.restype = restype
    base: Any = load_library().ggml_base
    size_p = ctypes.POINTER(ctypes.c_size_t)
    for name, argtypes, restype in (
        ("ggml_backend_dev_name", [ctypes.c_void_p], ctypes.c_char_p),
        ("ggml_backend_dev_description", [ctypes.c_void_p], ctypes.c_char_p),
        ("ggml_backend_dev_type", [ctypes.c_void_p], ctypes.c_int),
        ("ggml_backend_dev_backend_reg", [ctypes.c_void_p], ctypes.c_void_p),
        ("ggml_backend_reg_name", [ctypes.c_void_p], ctypes.c_char_p),
        ("ggml_backend_dev_memory", [ctypes.c_void_p, size_p, size_p], None),
    ):
        function = getattr(base, name)
        function.argtypes = argtypes
        function.restype = restype
    return ggml


def _handles() -> list[int]:
    ggml = _registry()
    return [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]


def _describe(handle: int) -> Device:
    base: Any = load_library().ggml_base
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    registration = base.ggml_backend_dev_backend_reg(handle)
    kind: int = base.ggml_backend_dev_type(handle)
    return Device(
        name=base.ggml_backend_dev_name(handle).decode(),
        description=base.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
        backend=base.ggml_backend_reg_name(registration).decode(),
        kind=_KINDS[kind],
        total_n_bytes=total.value,
        free_n_bytes=free.value,
    )


def devices() -> tuple[Device, ...]:
    """Return the devices that the installed llama.cpp can run on, CPU included."""
    return tuple(_describe(handle) for handle in _handles())


def offload_handles(device: str) -> list[int] | None:
    """Return the native handles of the devices that take layers, for native/ alone.

    Args:
        device: "auto", "cpu", "cuda", "metal" or "vulkan".

    Returns:
        None for "auto" (llama.cpp takes what there is), an empty list for "cpu".

    Raises:
        ModelLoadError: an unknown name, or a device that this build of llama.cpp lacks.
    """
    if device == "auto":
        return None
    if device == "cpu":
        return []
    backend = _BACKENDS.get(device)
    if backend is None:
        known = ", ".join(["auto", "cpu", *_BACKENDS])
        raise ModelLoadError(f"device {device!r} is unknown", hint=f"use one of {known}")
    found = [handle for handle in _handles() if _describe(handle).backend == backend]
    if not found:
        raise _no_device(device)
    return found


def _no_device(device: str) -> ModelLoadError:
    have = ", ".join(sorted({one.backend for one in devices()}))
    if device in gpu_libraries():
        return ModelLoadError(
            f"llama-cpp-python is built with {device}, and sees no such device (it has: {have})",
            hint=f"{UNSEEN_CARD}, or use `--device cpu`"
            if device == "cuda"
            else "check the card's driver, or use `--device cpu`",
        )
    return ModelLoadError(
        f"the installed llama-cpp-python has no {device} device (it has: {have})",
        hint=f"use `--device auto`, or install a build of llama-cpp-python with {device}",
    )


def lacks_card_memory(lines: Iterable[str]) -> bool:
    """Return whether llama.cpp's error lines say that a card's memory ran out."""
    return any(_CARD_IS_FULL.search(line) for line in lines)


def gpu_libraries() -> tuple[str, ...]:
    """Return the GPU backends beside llama-cpp-python; nothing is loaded for the answer."""
    spec = importlib.util.find_spec("llama_cpp")
    places = spec.submodule_search_locations if spec is not None else None
    names = [file.name for place in places or () for file in Path(place, "lib").glob("*ggml*")]
    return tuple(kind for kind in _GPU_LIBRARIES if any(f"ggml-{kind}" in name for name in names))


def system_info() -> str:
    """Return ggml's own line about what this build can use: "CPU : SSE3 = 1 | AVX2 = 1 | ..."."""
    line: bytes = load_library().llama.llama_print_system_info()
    return line.decode("utf-8", "replace").strip()


def ggml_version() -> str:
    """Return the version of the ggml inside: "0.25.3"."""
    base = load_library().ggml_base
    base.ggml_version.restype = ctypes.c_char_p
    version: bytes = base.ggml_version()
    return version.decode("utf-8", "replace")


def parse_system_info(line: str) -> frozenset[str]:
    """Return the features that ggml's system info line gives as present."""
    return frozenset(re.findall(r"(\w+) = (?!0\b)\w+", line))
