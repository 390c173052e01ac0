"""How many threads are worth their while."""

from __future__ import annotations

import os
from pathlib import Path

from edgevlm.gguf_shards import shard_paths

_FILE_BYTES_PER_THREAD = 32 << 20


def default_threads(file: Path) -> int:
    """Return how many threads run the model of a GGUF file when nobody says.

    ggml's threads meet at a barrier after every operation, spinning: on a busy machine a second
    thread made the 6 MB of `shapes` 40 times slower (tokens per second), not faster.
    """
    n_bytes = sum(part.stat().st_size for part in shard_paths(file) if part.exists())
    return max(1, min(_n_processors(), n_bytes // _FILE_BYTES_PER_THREAD))


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
