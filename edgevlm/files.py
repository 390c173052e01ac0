"""Write files so that a kill at any moment leaves the old ones or none, never a plausible half.

A `WriteTogether` owns one folder while it writes: it takes the folder's lock, removes what a
killed run left behind, checks the free space, hands out temporary names in the same folder, and at
the end makes all files visible by renames, in the order in which they were asked for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from edgevlm.errors import OutputError, OutputExistsError

TEMPORARY_PREFIX = ".edgevlm-tmp-"
LOCK_NAME = ".edgevlm.lock"
_CHUNK_BYTES = 1 << 22
# What the file system may need beside the bytes of the files themselves.
_SPARE_BYTES = 1 << 20


def sha256_file(path: Path, *, stopped: Event | None = None) -> str:
    """Return the SHA-256 of a file as lower-case hex, read in chunks of 4 MiB.

    When another thread sets `stopped`, the reading ends early and the value means nothing.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while not (stopped and stopped.is_set()) and (chunk := file.read(_CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()


def human_bytes(n_bytes: int) -> str:
    """Return a size as people read it: `20.5 MB` (decimal units, as the Hub and disks count)."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def check_free_space(
    folder: Path,
    n_bytes: int,
    *,
    hint: str = "free some space, or choose another folder with --out",
) -> None:
    """Raise OutputError when the file system of `folder` has no room for `n_bytes` more."""
    free = shutil.disk_usage(_existing_parent(folder)).free
    if n_bytes + _SPARE_BYTES > free:
        raise OutputError(
            f"not enough disk space in `{folder}`: {human_bytes(n_bytes)} needed, "
            f"{human_bytes(free)} free",
            hint=hint,
        )


class WriteTogether:
    """The files of one run: temporary until `write_together` ends without an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._renames: list[tuple[Path, Path]] = []
        self._leaving: list[Path] = []

    def create(self, name: str) -> Path:
        """Return the temporary path whose file becomes `folder/name` at the end.

        Its name ends as the final one does: the files of a split model find each other by that.
        """
        temporary = self._folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{name}"
        self._renames.append((temporary, self._folder / name))
        return temporary

    def remove(self, name: str) -> None:
        """Let `folder/name` go at the end, before the new files become visible."""
        self._leaving.append(self._folder / name)

    def commit(self) -> None:
        """Flush every file to the disk, then rename them all in the order of `create`."""
        for temporary, _ in self._renames:
            flush(temporary)
        for path in self._leaving:
            path.unlink(missing_ok=True)
        if self._leaving:
            flush(self._folder)
        for temporary, final in self._renames:
            os.replace(temporary, final)
        flush(self._folder)

    def discard(self) -> None:
        """Remove what is still temporary."""
        for temporary, _ in self._renames:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_together(
    folder: Path, *, names: Sequence[str], n_bytes: int, force: bool
) -> Generator[WriteTogether]:
    """Write several files into `folder` that become visible together, in the order of `create`.

    Args:
        folder: created when missing; removed again when it was created and the run failed.
        names: the final names that may not exist yet, unless `force`.
        n_bytes: planned size of all files together, checked against the free space first.
        force: replace existing files.

    Raises:
        OutputExistsError: a final name is taken and `force` is not set.
        OutputError: the folder cannot be written, another run is writing it, or the disk is too
            small.
    """
    taken = [name for name in names if (folder / name).exists()]
    if taken and not force:
        raise OutputExistsError(
            f"`{folder / taken[0]}` exists already", hint="give --force to replace it"
        )
    check_free_space(folder, n_bytes)
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            _remove_stale(folder)
            files = WriteTogether(folder)
            try:
                yield files
                files.commit()
            finally:
                files.discard()
    except OSError as error:
        raise OutputError(
            f"cannot write into `{folder}`: {error.strerror or error}",
            hint="check the folder's permissions and its disk, or choose another with --out",
        ) from error
    finally:
        if created and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Generator[None]:
    """Hold the folder's writer lock; the kernel drops it when the process dies.

    Args:
        folder: must exist; a file `.edgevlm.lock` stands in it while the lock is held.
        wait: wait for another writer instead of raising OutputError.
    """
    path = folder / LOCK_NAME
    descriptor = _lock_file(path, wait=wait)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock_file(path: Path, *, wait: bool) -> int:
    if os.name == "nt":  # no flock there; two writers at once are the user's to avoid
        return os.open(path, os.O_RDWR | os.O_CREAT)
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The holder before us may have removed the file that we opened: then lock the new one.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise OutputError(
                f"another edgevlm is writing into `{path.parent}`",
                hint="wait until it has finished, or choose another folder with --out",
            ) from None
        os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    """Remove the temporaries of a killed run; the lock says that nobody else is writing."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the bytes of a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
