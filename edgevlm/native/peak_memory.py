"""The most memory that this process has had resident."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_memory_n_bytes() -> int:
    """Return the largest resident set in bytes, since `forget_peak_memory` where that was called.

    Linux: VmHWM of /proc/self/status, because ru_maxrss also counts what the parent held when it
    started us (getrusage(2), execve keeps it). Elsewhere ru_maxrss, in bytes on macOS, KiB on BSD.
    """
    if _STATUS.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(found[1]) * 1024
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory() -> bool:
    """Begin to watch anew; False where the system cannot (Linux can: proc(5), clear_refs)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True
