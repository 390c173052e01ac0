"""The Hub's own cache on this machine, in the layout that huggingface_hub documents.

    models--org--name/
      blobs/<etag>                    the bytes, once
      refs/main                       the commit that a revision was when it was last asked for
      snapshots/<commit>/config.json  -> ../../blobs/<etag>

(huggingface.co/docs/huggingface_hub/guides/manage-cache). What is not whole yet stands beside the
blobs as `<etag>.edgevlm.incomplete`, where `hf cache prune` finds it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import OutputError
from edgevlm.files import flush, folder_lock
from edgevlm.hub.file import HubFile
from edgevlm.progress import Note

HOME_HINT = "set HF_HOME to a folder on a disk with room that can be written"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,127}")
# Of one snapshot; far above any model's.
_MAX_FILES = 10_000


def is_plain_etag(etag: str) -> bool:
    """Whether a file can be kept under this name."""
    return _PLAIN_ETAG.fullmatch(etag) is not None


@dataclass(frozen=True, kw_only=True)
class RepoCache:
    """What the cache holds of one repository.

    Attributes:
        folder: `models--org--name`, which may not exist yet.
        has_links: a snapshot's files are links; else the bytes lie in the snapshot.
    """

    folder: Path
    has_links: bool

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a revision was when it was last asked for."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if _COMMIT.fullmatch(text) else None

    def files(self, commit: str) -> dict[str, int]:
        """Return the files of a commit that are here, with their sizes."""
        found: dict[str, int] = {}
        root = self.snapshot(commit)
        for parent, _, names in os.walk(root):
            for path in (Path(parent, name) for name in names):
                with suppress(OSError):  # a link whose blob is gone
                    found[path.relative_to(root).as_posix()] = path.stat().st_size
            if len(found) > _MAX_FILES:
                break
        return found

    def partial(self, file: HubFile) -> Path:
        """Return where the bytes of a file gather."""
        return self.folder / "blobs" / f"{file.etag}.edgevlm.incomplete"

    def partial_bytes(self, file: HubFile) -> int:
        """Return how much of a file has gathered."""
        return min(_size(self.partial(file)) or 0, file.n_bytes or 0)

    def holds(self, file: HubFile, commit: str) -> bool:
        """Whether the file of a commit is here, whole."""
        size = _size(self.snapshot(commit) / file.name)
        return size is not None and file.n_bytes in (None, size)

    def take_blob(self, file: HubFile, commit: str) -> bool:
        """Show a blob that is here already as the file of a commit; False: there is none."""
        if _size(self.folder / "blobs" / f"{file.etag}") != file.n_bytes:
            return False
        self._show(file, commit)
        return True

    def publish(self, file: HubFile, commit: str) -> None:
        """Make a blob of what has gathered, and show it as the file of a commit."""
        partial = self.partial(file)
        flush(partial)
        os.replace(partial, self.folder / "blobs" / f"{file.etag}")
        self._show(file, commit)

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit a revision is today; a cache that cannot be written forgets it."""
        path = self.folder / "refs" / revision
        if revision == commit or self.commit_of(revision) == commit:
            return
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            temporary.write_text(commit, encoding="ascii")
            os.replace(temporary, path)

    @contextmanager
    def writing(self, note: Note) -> Generator[None]:
        """Hold the repository's lock; wait for another edgevlm that downloads it.

        Raises:
            OutputError: the cache cannot be written, or its disk is full.
        """
        try:
            for part in ("blobs", "snapshots"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            with self._lock(note):
                yield
        except OSError as error:
            raise OutputError(
                f"cannot write into the Hub's cache `{self.folder}`: {error.strerror or error}",
                hint=HOME_HINT,
            ) from error

    @contextmanager
    def _lock(self, note: Note) -> Generator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(self.folder))
            except OutputError:
                note("waiting for another edgevlm that downloads the same repository")
                stack.enter_context(folder_lock(self.folder, wait=True))
            yield

    def _show(self, file: HubFile, commit: str) -> None:
        path = self.snapshot(commit) / file.name
        blob = self.folder / "blobs" / f"{file.etag}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if self.has_links:
            try:
                os.symlink(os.path.relpath(blob, path.parent), path)
            except OSError:
                if os.name != "nt":  # Windows asks for a privilege
                    raise
            else:
                return
        os.replace(blob, path)


def open_cache(repo: str) -> RepoCache:
    """Return the cache of a repository; nothing is created."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    return RepoCache(
        folder=root / repo_folder_name(repo_id=repo, repo_type="model"),
        has_links=not constants.HF_HUB_DISABLE_SYMLINKS,
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
