"""What systems say about themselves, from recorded texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.native.devices import parse_system_info, system_info
from edgevlm.native.system import (
    parse_cpuinfo,
    parse_meminfo,
    parse_sysctl,
    parse_vm_stat,
    read_cgroup,
    read_cpu_quota,
    read_memory,
)

PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

processor\t: 1
Features\t: fp

Revision\t: d04170
Serial\t\t: 1000000012345678
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""  # noqa: E501
PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
ZEN_4 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD Ryzen 7 7840U w/ Radeon 780M Graphics
cache size\t: 1024 KB
flags\t\t: fpu sse sse2 pni ssse3 fma sse4_1 avx f16c bmi1 avx2 bmi2 avx512f avx512vbmi avx512_vnni avx512_bf16
bugs\t\t: sysret_ss_attrs spectre_v1
"""  # noqa: E501
ALDER_LAKE = """\
model name\t: Intel(R) N100
flags\t\t: fpu pni ssse3 fma avx f16c avx2 bmi2 avx_vnni
"""
M2 = """\
machdep.cpu.brand_string: Apple M2
hw.memsize: 17179869184
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
"""
MEMINFO = """\
MemTotal:        8257088 kB
MemFree:          310272 kB
MemAvailable:    6123520 kB
Buffers:           65536 kB
Cached:          5505024 kB
SwapTotal:        524272 kB
SwapFree:         524272 kB
HugePages_Total:       0
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            400000.
Pages inactive:                          300000.
Pages speculative:                         2000.
Pages wired down:                        150000.
Pages purgeable:                           5000.
"""


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (PI_5, "Raspberry Pi 5 Model B Rev 1.0", "NEON DOTPROD FP16_VA"),
        (PI_4, "Raspberry Pi 4 Model B Rev 1.4", "NEON"),
        (
            ZEN_4,
            "AMD Ryzen 7 7840U w/ Radeon 780M Graphics",
            "SSE3 SSSE3 FMA AVX F16C AVX2 BMI2 AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16",
        ),
        (ALDER_LAKE, "Intel(R) N100", "SSE3 SSSE3 FMA AVX F16C AVX2 BMI2 AVX_VNNI"),
        ("", "", ""),
    ],
)
def test_reads_processors(text: str, name: str, features: str) -> None:
    found = parse_cpuinfo(text)
    assert found.name == name
    assert found.features == frozenset(features.split())


def test_reads_an_apple_processor() -> None:
    found = parse_sysctl(M2)
    assert found.name == "Apple M2"
    assert found.features == {"NEON", "DOTPROD", "FP16_VA", "MATMUL_INT8"}


def test_reads_the_system_info_line() -> None:
    line = "CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 0 | SVE_CNT = 16 | REPACK = 1 | "
    assert parse_system_info(line) == {"NEON", "ARM_FMA", "SVE_CNT", "REPACK"}


def test_the_installed_build_says_what_it_uses() -> None:
    assert parse_system_info(system_info())


def test_reads_memory_sizes() -> None:
    sizes = parse_meminfo(MEMINFO)
    assert sizes["MemAvailable"] == 6123520 * 1024
    assert "HugePages_Total" not in sizes


def test_reads_macos_pages() -> None:
    assert parse_vm_stat(VM_STAT) == 16384 * (10000 + 300000 + 2000 + 5000)
    assert parse_vm_stat("command not found") is None


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_a_limit_the_kernel_number_counts(tmp_path: Path) -> None:
    _write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/user.slice\n"})
    _write(tmp_path, {"sys/fs/cgroup/user.slice/memory.max": "max\n"})
    memory = read_memory(tmp_path)
    assert memory.available_n_bytes == 6123520 * 1024
    assert memory.total_n_bytes == 8257088 * 1024
    assert memory.swap_n_bytes == 524272 * 1024
    assert memory.cgroup is None
    assert memory.source == "MemAvailable"


def test_the_tightest_group_above_counts_and_its_file_cache_is_free(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice"
    _write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/system.slice/box.scope\n",
            f"{group}/memory.max": f"{2 << 30}\n",
            f"{group}/memory.current": f"{1 << 30}\n",
            f"{group}/memory.stat": f"anon 1\ninactive_file {1 << 28}\n",
            f"{group}/box.scope/memory.max": "max\n",
            f"{group}/box.scope/memory.current": "5\n",
        },
    )
    memory = read_memory(tmp_path)
    assert memory.cgroup is not None
    assert memory.cgroup.limit_n_bytes == 2 << 30
    assert memory.available_n_bytes == (1 << 30) + (1 << 28)
    assert "container" in memory.source


def test_reads_limits_of_the_first_version(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n",
            f"{group}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{group}/memory.usage_in_bytes": "100\n",
            f"{group}/docker/abc/memory.limit_in_bytes": f"{1 << 30}\n",
            f"{group}/docker/abc/memory.usage_in_bytes": f"{1 << 29}\n",
            f"{group}/docker/abc/memory.stat": f"inactive_file 3\ntotal_inactive_file {1 << 20}\n",
        },
    )
    limit = read_cgroup(tmp_path)
    assert limit is not None
    assert limit.free_n_bytes == (1 << 29) + (1 << 20)


def test_a_limit_above_what_is_free_does_not_help(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{64 << 30}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    memory = read_memory(tmp_path)
    assert memory.source == "MemAvailable"
    assert memory.available_n_bytes == 6123520 * 1024


def test_reads_quotas_of_both_versions(tmp_path: Path) -> None:
    _write(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
        },
    )
    assert read_cpu_quota(tmp_path / "v2") == 1.5
    group = "sys/fs/cgroup/cpu,cpuacct"
    _write(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n",
            f"{group}/cpu.cfs_quota_us": "-1\n",
            f"{group}/cpu.cfs_period_us": "100000\n",
            f"{group}/docker/abc/cpu.cfs_quota_us": "200000\n",
            f"{group}/docker/abc/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_cpu_quota(tmp_path / "v1") == 2.0
    assert read_cpu_quota(tmp_path / "none") is None
