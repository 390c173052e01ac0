from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from edgevlm.build import written
from edgevlm.build.written import WrittenFile


def follow_one(path: Path, error: BaseException | None = None) -> str:
    with WrittenFile(path) as following:
        following.follow(b"x" * 100)
        if error is not None:
            raise error
        return following.complete()


def test_the_hash_is_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_BATCH_BYTES", 1000)
    monkeypatch.setattr(written, "_FLUSH_BYTES", 5000)
    flushed: list[int] = []
    path = tmp_path / "file"

    def flush(path: Path) -> None:
        flushed.append(path.stat().st_size)

    monkeypatch.setattr(written, "flush", flush)
    pieces = [bytes([n % 256]) * (n * 7) for n in range(100)]
    with path.open("wb", buffering=0) as file, WrittenFile(path) as following:
        for piece in pieces:
            file.write(piece)
            following.follow(piece)
        found = following.complete()
    assert found == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    # On the way to the disk before the end, and all of it at the end.
    assert len(flushed) > 1
    assert flushed[-1] == path.stat().st_size


def test_an_error_ends_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "_BATCH_BYTES", 10)
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(KeyboardInterrupt):
        follow_one(path, KeyboardInterrupt())
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith(("edgevlm-hash", "edgevlm-flush")) for name in names)


def test_a_disk_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        follow_one(tmp_path / "gone")


def test_a_failure_on_the_way_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "_FLUSH_BYTES", 1)
    failures = [OSError("the disk is gone")]

    def flush(path: Path) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(written, "flush", flush)
    with pytest.raises(OSError, match="gone"):
        follow_one(tmp_path / "file")
