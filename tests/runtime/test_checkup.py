"""What `doctor` makes of machines that are not this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.native.devices import Device
from edgevlm.native.system import CgroupLimit, Memory, Processor
from edgevlm.runtime.checkup import (
    judge_devices,
    judge_disk,
    judge_features,
    judge_memory,
    judge_swap,
    judge_threads,
)

VERSION = "0.3.36"
PI_5 = Processor(
    name="Raspberry Pi 5 Model B Rev 1.0", features=frozenset({"NEON", "DOTPROD", "FP16_VA"})
)


def memory(
    *, available: int = 6_000_000_000, total: int = 8_000_000_000, swap: int = 0, limit: int = 0
) -> Memory:
    return Memory(
        total_n_bytes=total,
        available_n_bytes=available,
        swap_n_bytes=swap,
        swap_free_n_bytes=swap // 2,
        cgroup=CgroupLimit(limit_n_bytes=limit, used_n_bytes=0) if limit else None,
        source="MemAvailable",
    )


def device(name: str, backend: str) -> Device:
    return Device(
        name=name,
        description="it",
        backend=backend,
        kind="cpu" if backend == "CPU" else "gpu",
        total_n_bytes=0,
        free_n_bytes=0,
    )


def test_a_generic_build_on_a_pi_is_told_how_to_be_faster() -> None:
    found = judge_features(PI_5, frozenset({"NEON", "ARM_FMA", "REPACK"}), VERSION)
    assert found.state == "warn"
    assert "built without its DOTPROD, FP16_VA" in found.value
    assert "--no-binary llama-cpp-python llama-cpp-python==0.3.36" in found.advice
    assert "-DGGML_NATIVE=ON" in found.advice


def test_a_native_build_is_well() -> None:
    found = judge_features(PI_5, PI_5.features | {"ARM_FMA", "LLAMAFILE"}, VERSION)
    assert found.state == "ok"
    assert "all used: DOTPROD, FP16_VA, NEON" in found.value


def test_a_build_for_a_larger_processor_is_warned_of() -> None:
    old = Processor(name="i5-3470", features=frozenset({"AVX", "F16C", "SSE3"}))
    found = judge_features(old, frozenset({"AVX", "AVX2", "F16C", "FMA"}), VERSION)
    assert found.state == "warn"
    assert "AVX2, FMA, which it lacks" in found.value
    assert "Illegal instruction" in found.advice


def test_an_unknown_processor_is_no_fault() -> None:
    found = judge_features(
        Processor(name="", features=frozenset()), frozenset({"RISCV_V"}), VERSION
    )
    assert found.state == "ok"


def test_an_idle_nvidia_card_is_named() -> None:
    cpu = device("CPU", "CPU")
    found = judge_devices([cpu], nvidia=True, llama_version=VERSION)
    assert found.state == "warn"
    assert "-DGGML_CUDA=on" in found.advice
    both = [device("CUDA0", "CUDA"), cpu]
    assert judge_devices(both, nvidia=True, llama_version=VERSION).state == "ok"
    assert judge_devices([cpu], nvidia=False, llama_version=VERSION).state == "ok"


def test_a_card_that_cuda_does_not_see_is_not_taken_for_a_build_without_cuda() -> None:
    cpu = device("CPU", "CPU")
    found = judge_devices([cpu], nvidia=True, built_with=("cuda",), llama_version=VERSION)
    assert found.state == "warn"
    assert "is built with CUDA and sees no card" in found.value
    assert "nvidia-smi" in found.advice
    assert "pip install" not in found.advice


@pytest.mark.parametrize(
    ("quota", "state", "threads"), [(None, "ok", ""), (4.0, "ok", ""), (1.5, "warn", "1")]
)
def test_a_quota_below_the_threads_is_warned_of(
    quota: float | None, state: str, threads: str
) -> None:
    found = judge_threads(n_all=8, n_allowed=4, quota=quota)
    assert found.state == state
    assert "4 of 8" in found.value
    assert not threads or f"`--threads {threads}`" in found.advice


def test_little_memory_is_warned_of_and_limits_are_shown() -> None:
    assert judge_memory(memory()).state == "ok"
    found = judge_memory(memory(available=500_000_000, limit=600_000_000))
    assert found.state == "warn"
    assert "500.0 MB available of 8.0 GB" in found.value
    assert "limit of the control group: 600.0 MB" in found.value


def test_only_small_machines_are_asked_for_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert judge_swap(memory(total=4_000_000_000)).state == "warn"
    assert judge_swap(memory(total=16_000_000_000)).state == "ok"
    with_swap = judge_swap(memory(total=4_000_000_000, swap=2_000_000_000))
    assert with_swap.state == "ok"
    assert "1.0 GB used" in with_swap.value


def test_a_full_or_locked_disk_is_warned_of() -> None:
    folder = Path("/cache")

    def state(*, free: int, writable: bool) -> str:
        return judge_disk(folder, free_n_bytes=free, writable=writable, cache_n_bytes=5).state

    assert state(free=9_000_000_000, writable=True) == "ok"
    assert state(free=9_000_000, writable=True) == "warn"
    assert state(free=9_000_000_000, writable=False) == "warn"
