"""Look over the machine and the installation: what is well, what is not, and what to do about it.

Each judgement is a pure function from what was read to a `Finding`; only `examine` reads.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from edgevlm import __version__
from edgevlm.errors import EdgeVLMError
from edgevlm.files import human_bytes
from edgevlm.native.devices import (
    UNSEEN_CARD,
    Device,
    devices,
    ggml_version,
    gpu_libraries,
    parse_system_info,
    system_info,
)
from edgevlm.native.library import load_library
from edgevlm.native.system import (
    Memory,
    Processor,
    n_allowed_processors,
    n_processors,
    read_cpu_quota,
    read_memory,
    read_processor,
)
from edgevlm.runtime.trial import try_device

State = Literal["ok", "warn", "fail"]

_LITTLE_MEMORY = 1_000_000_000
_LITTLE_DISK = 2_000_000_000
# Machines below this need swap for the moments when a model is loaded.
_SMALL_MACHINE = 6_000_000_000
# Only these make a difference to speed. SME does not: ggml has no kernels of its own for it.
_THAT_MATTER = frozenset(
    {"AVX", "AVX2", "F16C", "FMA", "AVX_VNNI", "AMX_INT8"}
    | {"AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"}
    | {"NEON", "DOTPROD", "FP16_VA", "MATMUL_INT8", "SVE"}
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: "ok", "warn" (it works, and could be better), "fail" (something cannot work).
        value: what was found.
        advice: what to do; "" when there is nothing to do.
        detail: more, for a bug report.
    """

    name: str
    state: State
    value: str
    advice: str = ""
    detail: str = ""


def rebuild_command(version: str, cmake: str = "-DGGML_NATIVE=ON") -> str:
    """Return the command that builds llama-cpp-python from source for this machine."""
    return (
        f'CMAKE_ARGS="{cmake}" pip install --force-reinstall --no-deps --no-cache-dir'
        f" --no-binary llama-cpp-python llama-cpp-python=={version}"
    )


def judge_features(processor: Processor, build: frozenset[str], llama_version: str) -> Finding:
    """Hold the processor's features against those that the build uses."""
    name = processor.name or platform.machine()
    have = processor.features & _THAT_MATTER
    unused, absent = have - build, (build & _THAT_MATTER) - have
    if not have:
        return Finding(name="processor", state="ok", value=f"{name}; its features are unknown")
    if unused:
        return Finding(
            name="processor",
            state="warn",
            value=f"{name}; llama.cpp is built without its {_listed(unused)}",
            advice=f"build from source for this processor: {rebuild_command(llama_version)}",
        )
    if absent:
        return Finding(
            name="processor",
            state="warn",
            value=f"{name}; llama.cpp is built for {_listed(absent)}, which it lacks",
            advice="if a run ends with `Illegal instruction`, build from source here:"
            f" {rebuild_command(llama_version)}",
        )
    return Finding(name="processor", state="ok", value=f"{name}; all used: {_listed(have)}")


def _listed(features: frozenset[str]) -> str:
    return ", ".join(sorted(features))


def judge_devices(
    found: Sequence[Device], *, nvidia: bool, built_with: Sequence[str] = (), llama_version: str
) -> Finding:
    """Name the devices; an NVIDIA card that the build cannot use, or does not see, is a warning."""
    value = "; ".join(f"{one.name} ({one.description})" for one in found)
    if "cuda" in built_with and not any(one.backend == "CUDA" for one in found):
        return Finding(
            name="devices",
            state="warn",
            value=f"{value}; llama.cpp is built with CUDA and sees no card",
            advice=UNSEEN_CARD,
        )
    if nvidia and not any(one.backend == "CUDA" for one in found):
        return Finding(
            name="devices",
            state="warn",
            value=f"{value}; an NVIDIA card is here, llama.cpp is built without CUDA",
            advice=f"with the CUDA toolkit: {rebuild_command(llama_version, '-DGGML_CUDA=on')}",
        )
    return Finding(name="devices", state="ok", value=value)


def judge_trial(name: str, device: str, fault: EdgeVLMError | None) -> Finding:
    """Say whether a tiny model ran on a device.

    Args:
        name: of the finding.
        device: as `--device` takes it.
        fault: of `try_device`.
    """
    if fault is None:
        return Finding(name=name, state="ok", value="a tiny model loads and answers right")
    return Finding(
        name=name,
        state="fail",
        value=fault.message.splitlines()[0].rstrip(";:"),
        advice="build llama-cpp-python on this machine with its own compiler"
        if device == "cpu"
        else "build llama-cpp-python for this card (CMAKE_CUDA_ARCHITECTURES=native), and use"
        " `--device cpu` till then",
        detail=fault.message,
    )


def judge_threads(*, n_all: int, n_allowed: int, quota: float | None) -> Finding:
    """Compare the processors there are with those that this process may use."""
    value = f"{n_allowed} of {n_all} processors may be used"
    if quota is not None and quota < n_allowed:
        # ggml's threads wait for each other spinning: those beyond the quota only burn it.
        return Finding(
            name="threads",
            state="warn",
            value=f"{value}, and {quota:g} processors' worth of their time",
            advice=f"give the container more, or use `--threads {max(1, int(quota))}`",
        )
    return Finding(name="threads", state="ok", value=value)


def judge_memory(memory: Memory) -> Finding:
    """Look at what is free now."""
    value = (
        f"{human_bytes(memory.available_n_bytes)} available of {human_bytes(memory.total_n_bytes)}"
        f" ({memory.source})"
    )
    if memory.cgroup is not None:
        value += f"; limit of the control group: {human_bytes(memory.cgroup.limit_n_bytes)}"
    if memory.available_n_bytes >= _LITTLE_MEMORY:
        return Finding(name="memory", state="ok", value=value)
    return Finding(
        name="memory",
        state="warn",
        value=value,
        advice="close other programs, or use a small model at Q4_K_M with a short `--ctx`",
    )


def judge_swap(memory: Memory) -> Finding:
    """A small machine without swap ends a process that a moment of swap would save."""
    if memory.swap_n_bytes:
        used = memory.swap_n_bytes - memory.swap_free_n_bytes
        value = f"{human_bytes(memory.swap_n_bytes)}, {human_bytes(used)} used"
        return Finding(name="swap", state="ok", value=value)
    if not 0 < memory.total_n_bytes < _SMALL_MACHINE or sys.platform == "darwin":
        return Finding(name="swap", state="ok", value="none")
    return Finding(
        name="swap",
        state="warn",
        value="none, on a machine with little memory",
        advice="make a swap file of 2 GB, or compressed swap in memory (zram)",
    )


def judge_disk(folder: Path, *, free_n_bytes: int, writable: bool, cache_n_bytes: int) -> Finding:
    """Look at the room for models that are built."""
    value = f"{human_bytes(cache_n_bytes)} in {folder}, {human_bytes(free_n_bytes)} free"
    if not writable:
        return Finding(
            name="cache",
            state="warn",
            value=f"{folder} cannot be written",
            advice="set EDGEVLM_CACHE to a folder that can be",
        )
    if free_n_bytes < _LITTLE_DISK:
        advice = "free some space"
        if cache_n_bytes:
            advice += ": `edgevlm cache` lists what can go"
        return Finding(name="cache", state="warn", value=value, advice=advice)
    return Finding(name="cache", state="ok", value=value)


def examine(cache: Path, *, cache_n_bytes: int) -> tuple[Finding, ...]:
    """Look at everything. Nothing is changed; a part that is broken is a finding, not an error.

    Args:
        cache: the user's cache folder, which need not exist.
        cache_n_bytes: of what it holds.
    """
    memory = read_memory()
    place = _existing(cache)
    return (
        *_judge_versions(),
        *_judge_llama(),
        judge_threads(
            n_all=n_processors(), n_allowed=n_allowed_processors(), quota=read_cpu_quota()
        ),
        judge_memory(memory),
        judge_swap(memory),
        judge_disk(
            cache,
            free_n_bytes=shutil.disk_usage(place).free,
            writable=place.is_dir() and os.access(place, os.W_OK),
            cache_n_bytes=cache_n_bytes,
        ),
    )


def _judge_versions() -> list[Finding]:
    found = [
        Finding(name="edgevlm", state="ok", value=__version__),
        Finding(name="python", state="ok", value=f"{platform.python_version()} on {_system()}"),
    ]
    for package in ("numpy", "tokenizers", "pillow"):
        try:
            found.append(Finding(name=package, state="ok", value=version(package)))
        except PackageNotFoundError:
            found.append(
                Finding(
                    name=package,
                    state="fail",
                    value="not installed",
                    advice=f"pip install {package}",
                )
            )
    return found


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _judge_llama() -> list[Finding]:
    """Load llama.cpp; when that fails, what hangs on it cannot be looked at."""
    try:
        llama_version = load_library().version
        line = system_info()
        features = parse_system_info(line)
        found = devices()
    except EdgeVLMError as error:
        return [
            Finding(name="llama.cpp", state="fail", value=error.message, advice=error.hint),
        ]
    nvidia = Path("/dev/nvidiactl").exists()
    gpus = [one for one in found if one.kind in ("gpu", "igpu")]
    trials = [("cpu run", "cpu"), *([("gpu run", "auto")] if gpus else [])]
    return [
        Finding(
            name="llama.cpp",
            state="ok",
            value=f"llama-cpp-python {llama_version}, ggml {ggml_version()}, built with"
            f" {_listed(features - _THAT_MATTER) or 'nothing more'}",
            detail=line,
        ),
        judge_features(read_processor(), features, llama_version),
        judge_devices(
            found, nvidia=nvidia, built_with=gpu_libraries(), llama_version=llama_version
        ),
        *(judge_trial(name, device, try_device(device)) for name, device in trials),
    ]


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("/"))
