"""What this machine is: processor features, memory, limits; nothing here loads llama.cpp.

Parsing is apart from reading, so that every `parse_*` is a pure function of the text that a system
gives. Sources: proc(5) for /proc/meminfo and /proc/cpuinfo; cgroups(7) and the kernel's
admin-guide/cgroup-v1/memory and admin-guide/cgroup-v2; Apple's sysctl names `hw.optional.*`; names
of ARM features as the kernel's arch/arm64/elf_hwcaps spells them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# The kernel's word for a feature -> ggml's, as its system info line spells it.
_X86_FLAGS = {
    "pni": "SSE3",
    "ssse3": "SSSE3",
    "avx": "AVX",
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "bmi2": "BMI2",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512_vbmi": "AVX512_VBMI",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
}
_ARM_FLAGS = {
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "asimdhp": "FP16_VA",
    "i8mm": "MATMUL_INT8",
    "sve": "SVE",
    "sme": "SME",
}
_APPLE_FLAGS = {
    "hw.optional.neon": "NEON",
    "hw.optional.AdvSIMD": "NEON",
    "hw.optional.arm.FEAT_DotProd": "DOTPROD",
    "hw.optional.arm.FEAT_FP16": "FP16_VA",
    "hw.optional.arm.FEAT_I8MM": "MATMUL_INT8",
    "hw.optional.arm.FEAT_SME": "SME",
    "hw.optional.avx1_0": "AVX",
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.fma": "FMA",
    "hw.optional.f16c": "F16C",
    "hw.optional.avx512f": "AVX512",
}
# cgroup v1 writes "no limit" as the largest multiple of a page.
_NO_LIMIT = 1 << 62
_ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor.

    Attributes:
        name: as it calls itself; "" when it does not.
        features: that matter to ggml, by ggml's names, such as "AVX2" or "DOTPROD".
    """

    name: str
    features: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CgroupLimit:
    """What a container may still take, by the tightest limit above this process.

    Attributes:
        limit_n_bytes: the limit.
        used_n_bytes: used now, without the file cache that the kernel gives back first.
    """

    limit_n_bytes: int
    used_n_bytes: int

    @property
    def free_n_bytes(self) -> int:
        """Bytes below the limit."""
        return max(0, self.limit_n_bytes - self.used_n_bytes)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the machine, and what this process may have of it.

    Attributes:
        total_n_bytes: of the machine; 0 when unknown.
        available_n_bytes: that can be had without swapping, the cgroup's limit included.
        swap_n_bytes: swap space, 0 for none.
        swap_free_n_bytes: of it, free.
        cgroup: the limit, None for none.
        source: where the available number comes from.
    """

    total_n_bytes: int
    available_n_bytes: int
    swap_n_bytes: int
    swap_free_n_bytes: int
    cgroup: CgroupLimit | None
    source: str


def parse_cpuinfo(text: str) -> Processor:
    """Read the first processor of /proc/cpuinfo, x86 or ARM."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    x86 = _named(fields.get("flags", ""), _X86_FLAGS)
    arm = _named(fields.get("Features", ""), _ARM_FLAGS)
    # ARM cores have no name of their own in this file, boards such as the Pi do.
    name = fields.get("model name") or fields.get("Model") or fields.get("Hardware") or ""
    return Processor(name=name, features=x86 | arm)


def parse_sysctl(text: str) -> Processor:
    """Read the output of macOS's `sysctl -a` (or of the keys needed)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields[key.strip()] = value.strip()
    found = {feature for key, feature in _APPLE_FLAGS.items() if fields.get(key) == "1"}
    return Processor(name=fields.get("machdep.cpu.brand_string", ""), features=frozenset(found))


def _named(words: str, names: Mapping[str, str]) -> frozenset[str]:
    return frozenset(names[word] for word in words.split() if word in names)


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the sizes of /proc/meminfo in bytes, by name."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([^:\s]+):\s*(\d+) kB", line.strip())
        if match:
            found[match[1]] = int(match[2]) << 10
    return found


def parse_vm_stat(text: str) -> int | None:
    """Return the bytes that macOS can give away (free, inactive, purgeable), None when unread."""
    page = re.search(r"page size of (\d+) bytes", text)
    counts = dict(re.findall(r"^Pages (free|inactive|speculative|purgeable):\s+(\d+)", text, re.M))
    if page is None or "free" not in counts:
        return None
    return int(page[1]) * sum(map(int, counts.values()))


def read_cgroup(root: Path = _ROOT) -> CgroupLimit | None:
    """Return the tightest memory limit of the control groups that this process is in.

    Args:
        root: the folder that stands for `/`.
    """
    lines = _read(root / "proc/self/cgroup").splitlines()
    limits: list[CgroupLimit] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            limits += _limits(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            limits += _limits(
                root / "sys/fs/cgroup/memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
    return min(limits, key=lambda limit: limit.free_n_bytes, default=None)


def read_cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the processors' worth of time that the control groups grant, None for no limit.

    Args:
        root: the folder that stands for `/`.
    """
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for folder in _folders(root / "sys/fs/cgroup", path):
                quotas += _quota(_read(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _folders(root / "sys/fs/cgroup" / controllers, path):
                quota, period = (_read(folder / f"cpu.cfs_{x}_us") for x in ("quota", "period"))
                quotas += _quota(f"{quota} {period}")
    return min(quotas, default=None)


def _quota(text: str) -> list[float]:
    """Read "200000 100000" (2 processors) or "max 100000"; v1 writes -1 for no limit."""
    match = re.fullmatch(r"\s*(\d+)\s+(\d+)\s*", text)
    return [int(match[1]) / int(match[2])] if match and int(match[2]) else []


def _folders(mount: Path, path: str) -> list[Path]:
    # Inside a container the path may name what only the host sees: the mount itself then counts.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _limits(mount: Path, path: str, limit_name: str, used_name: str) -> list[CgroupLimit]:
    found: list[CgroupLimit] = []
    for folder in _folders(mount, path):
        limit, used = _read(folder / limit_name).strip(), _read(folder / used_name).strip()
        if not limit.isdigit() or not used.isdigit() or int(limit) >= _NO_LIMIT:
            continue
        stat = dict(re.findall(r"^(\w+) (\d+)$", _read(folder / "memory.stat"), re.M))
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
        found.append(CgroupLimit(limit_n_bytes=int(limit), used_n_bytes=max(0, int(used) - cache)))
    return found


def read_memory(root: Path = _ROOT) -> Memory:
    """Return what memory there is, and what this process may have of it now.

    Linux: MemAvailable or the cgroup's rest, whichever is smaller. macOS: `vm_stat`'s free,
    inactive and purgeable pages. Elsewhere, the installed memory.

    Args:
        root: the folder that stands for `/`.
    """
    sizes = parse_meminfo(_read(root / "proc/meminfo"))
    if not sizes:
        return _memory_without_proc()
    # Before Linux 3.14 there was no MemAvailable; free and cached is the kernel's own old advice.
    available = sizes.get("MemAvailable", sizes.get("MemFree", 0) + sizes.get("Cached", 0))
    cgroup = read_cgroup(root)
    limited = cgroup is not None and cgroup.free_n_bytes < available
    return Memory(
        total_n_bytes=sizes.get("MemTotal", 0),
        available_n_bytes=cgroup.free_n_bytes if cgroup is not None and limited else available,
        swap_n_bytes=sizes.get("SwapTotal", 0),
        swap_free_n_bytes=sizes.get("SwapFree", 0),
        cgroup=cgroup,
        source="the limit of the control group (container)" if limited else "MemAvailable",
    )


def _memory_without_proc() -> Memory:
    total = 0
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = parse_vm_stat(_output(["vm_stat"])) if sys.platform == "darwin" else None
    return Memory(
        total_n_bytes=total,
        available_n_bytes=total if available is None else available,
        swap_n_bytes=0,
        swap_free_n_bytes=0,
        cgroup=None,
        source="total memory, what is free is unknown" if available is None else "vm_stat",
    )


def read_processor(root: Path = _ROOT) -> Processor:
    """Return the processor's name and features; nothing is known of it on other systems."""
    if sys.platform == "darwin":
        return parse_sysctl(_output(["sysctl", "-a"]))
    return parse_cpuinfo(_read(root / "proc/cpuinfo"))


def n_processors() -> int:
    """Return the number of processors of the machine."""
    return os.cpu_count() or 1


def n_allowed_processors() -> int:
    """Return how many processors this process may use (affinity, `taskset`, cpusets)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_processors()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
