"""What edgevlm keeps for the user: models built on first use, and which model came last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

from platformdirs import user_cache_path

from edgevlm.errors import OutputError
from edgevlm.files import LOCK_NAME, folder_lock

EntryKind = Literal["model", "last model", "history", "other"]

_LAST_MODEL = "last-model.json"
_MODELS = "models"
_OTHERS: dict[str, EntryKind] = {_LAST_MODEL: "last model", "chat-history": "history"}


def cache_folder() -> Path:
    """Return the user's cache folder for edgevlm; `EDGEVLM_CACHE` names another."""
    named = os.environ.get("EDGEVLM_CACHE")
    return Path(named) if named else user_cache_path("edgevlm", appauthor=False)


def models_folder() -> Path:
    """Return where the cache keeps models, each in a folder of its own."""
    return cache_folder() / _MODELS


@contextmanager
def cache_lock(folder: Path) -> Generator[None]:
    """Make `folder` in the cache and hold its lock; wait for another run that builds the same.

    Raises:
        OutputError: the cache cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write into the cache `{folder}`: {error.strerror}",
            hint="set EDGEVLM_CACHE to a folder that can be written",
        ) from error
    with folder_lock(folder, wait=True):
        yield


@contextmanager
def scratch_folder(purpose: str) -> Generator[Path]:
    """Make a folder for large files beside the cache's models, and remove it when the block ends.

    Args:
        purpose: what its name begins with.

    Raises:
        OutputError: the cache cannot be written.
    """
    with cache_lock(models_folder()):
        pass
    with TemporaryDirectory(prefix=f"{purpose}-", dir=models_folder()) as folder:
        yield Path(folder)


def remember_model(name: str) -> None:
    """Keep `name` (a path or `shapes`) as the model used last.

    A cache that cannot be written is no error: the next run then asks for a name.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{_LAST_MODEL}.{os.getpid()}"
        temporary.write_text(json.dumps({"model": name}))
        os.replace(temporary, folder / _LAST_MODEL)
    except OSError:
        return


def last_model() -> str | None:
    """Return the model used last, None when there is none or it is gone."""
    try:
        document = json.loads((cache_folder() / _LAST_MODEL).read_text())
    except (OSError, ValueError):
        return None
    name = cast(dict[str, object], document).get("model") if isinstance(document, dict) else None
    if not isinstance(name, str) or (name != "shapes" and not Path(name).exists()):
        return None
    return name


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One thing that the cache keeps.

    Attributes:
        name: as `edgevlm cache` lists it.
        kind: what it is.
        path: where it lies; a symbolic link is an entry of its own and never followed.
        n_bytes: of all its files.
        last_used: seconds since 1970 of the last reading or writing, as far as the file system
            notes readings (most do so once a day).
    """

    name: str
    kind: EntryKind
    path: Path
    n_bytes: int
    last_used: float


def cache_entries() -> tuple[CacheEntry, ...]:
    """Return what the cache keeps, the entry used last first; empty folders are left out."""
    folder = cache_folder()
    entries: list[CacheEntry] = []
    for path in _children(folder):
        if path.name == _MODELS and path.is_dir() and not path.is_symlink():
            entries += [_entry(child, child.name, "model") for child in _children(path)]
        else:
            entries.append(_entry(path, path.name, _OTHERS.get(path.name, "other")))
    used = [entry for entry in entries if entry.n_bytes or entry.path.is_symlink()]
    return tuple(sorted(used, key=lambda entry: entry.last_used, reverse=True))


def beyond(entries: Sequence[CacheEntry], n_bytes: int) -> tuple[CacheEntry, ...]:
    """Return the models that must go for all entries to come to at most `n_bytes`.

    Those that were not used for the longest time go first.
    """
    total = sum(entry.n_bytes for entry in entries)
    leaving: list[CacheEntry] = []
    for entry in sorted(entries, key=lambda entry: entry.last_used):
        if total <= n_bytes:
            break
        if entry.kind == "model":
            leaving.append(entry)
            total -= entry.n_bytes
    return tuple(leaving)


def remove_entries(
    entries: Sequence[CacheEntry],
) -> tuple[tuple[CacheEntry, ...], tuple[CacheEntry, ...]]:
    """Remove entries for good.

    Links are removed, what they lead to is not. A model that another process is writing stays.

    Returns:
        Those that were removed, and those that are being written.

    Raises:
        OutputError: the system refuses.
    """
    removed: list[CacheEntry] = []
    busy: list[CacheEntry] = []
    for entry in entries:
        try:
            (removed if _remove(entry.path) else busy).append(entry)
        except OSError as error:
            raise OutputError(
                f"cannot remove `{entry.path}`: {error.strerror}",
                hint="check whose folder it is",
            ) from error
    return tuple(removed), tuple(busy)


def _remove(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    with ExitStack() as stack:
        try:
            for folder in (path, *(child for child in _children(path) if _is_folder(child))):
                stack.enter_context(folder_lock(folder))
        except OutputError:
            return False
        # The folder stays, empty, with its lock: who waits for the lock then finds it there.
        for child in _children(path):
            if _is_folder(child):
                shutil.rmtree(child)  # does not follow links
            elif child.name != LOCK_NAME:
                child.unlink()
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _entry(path: Path, name: str, kind: EntryKind) -> CacheEntry:
    stats = [file.lstat() for file in _files(path)]
    return CacheEntry(
        name=name,
        kind=kind,
        path=path,
        n_bytes=sum(stat.st_size for stat in stats),
        last_used=max((max(stat.st_atime, stat.st_mtime) for stat in stats), default=0.0),
    )


def _files(path: Path) -> Iterator[Path]:
    if not _is_folder(path):
        yield path
        return
    for parent, _, names in os.walk(path):  # does not follow links
        yield from (Path(parent, name) for name in names if name != LOCK_NAME)
