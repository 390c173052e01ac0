"""The folder of one comparison in the cache: what was measured, kept for a run that goes on."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgevlm.build.cache import cache_folder, cache_lock
from edgevlm.drift.records import StoredImages, load_arrays, save_arrays

# Of comparisons with other questions or another baseline; each keeps some megabytes.
_MOST_KEPT = 8
# What tells a text model and a projector from others.
Pair = tuple[str, str]


class Workspace:
    """Records by pair of files and question, embeddings by projector, facts by pair of files.

    Attributes:
        folder: in the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record_path(self, pair: Pair, index: int) -> Path:
        """Return where the record of a question at a pair of files is."""
        return self.folder / "records" / _short(*pair) / f"{index:06}.npz"

    def rows_path(self, index: int) -> Path:
        """Return where the baseline's distributions for a question are."""
        return self.folder / "baseline" / f"{index:06}.npz"

    def images(self, projector: str) -> StoredImages:
        """Return the embeddings that a projector has made."""
        return StoredImages(self.folder / "images" / _short(projector))

    def facts(self, pair: Pair) -> dict[str, Any]:
        """Return what is known of a pair of files beside its records."""
        found = load_arrays(self._facts_path(pair))
        return found[0] if found is not None else {}

    def add_facts(self, pair: Pair, facts: Mapping[str, Any]) -> None:
        """Keep more of what is known of a pair of files."""
        save_arrays(self._facts_path(pair), {**self.facts(pair), **facts}, {})

    def _facts_path(self, pair: Pair) -> Path:
        return self.folder / "facts" / f"{_short(*pair)}.npz"


@contextmanager
def open_workspace(identity: str) -> Generator[Workspace]:
    """Open the folder of a comparison, and hold its lock; the oldest of many others goes.

    Args:
        identity: all that the numbers depend on, but the levels.

    Raises:
        OutputError: the cache cannot be written.
    """
    parent = cache_folder() / "compare"
    folder = parent / _short(identity)
    with cache_lock(folder):
        folder.touch()
        others = sorted(
            (one for one in parent.iterdir() if one.is_dir() and one != folder),
            key=lambda one: one.stat().st_mtime_ns,
            reverse=True,
        )
        for old in others[_MOST_KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        yield Workspace(folder)


def _short(*names: str) -> str:
    return sha256("\n".join(names).encode()).hexdigest()[:20]
