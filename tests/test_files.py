"""Atomic writing: all files of a run or none, one writer a folder, space checked first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm.errors import OutputError, OutputExistsError
from edgevlm.files import (
    LOCK_NAME,
    TEMPORARY_PREFIX,
    folder_lock,
    human_bytes,
    sha256_file,
    write_together,
)


def test_files_become_visible_together_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    real = os.replace
    monkeypatch.setattr(
        os,
        "replace",
        lambda a, b: (renamed.append(Path(b).name), real(a, b))[1],  # pyright: ignore
    )
    with write_together(tmp_path, names=["a", "b"], n_bytes=2, force=False) as files:
        files.create("a").write_bytes(b"1")
        files.create("b").write_bytes(b"2")
        assert not (tmp_path / "a").exists()
    assert renamed == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def write_and_fail(folder: Path, error: type[BaseException], *, force: bool) -> None:
    with write_together(folder, names=["a"], n_bytes=1, force=force) as files:
        files.create("a").write_bytes(b"new")
        raise error


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "new", RuntimeError, force=False)
    assert not (tmp_path / "new").exists()


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path, KeyboardInterrupt, force=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_existing_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (
        pytest.raises(OutputExistsError, match="exists already"),
        write_together(tmp_path, names=["a"], n_bytes=1, force=False),
    ):
        pass


def test_space_is_checked_before_the_first_byte(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="not enough disk space"),
        write_together(tmp_path / "new", names=["a"], n_bytes=1 << 60, force=False),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_stale_temporaries_go(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}123-0-a").write_bytes(b"half")
    (tmp_path / LOCK_NAME).touch()
    with write_together(tmp_path, names=["a"], n_bytes=1, force=False) as files:
        files.create("a").write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_one_writer_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from edgevlm.files import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another edgevlm"), folder_lock(tmp_path):
            pass
        other.kill()
    with folder_lock(tmp_path):  # the kernel dropped the lock of the killed writer
        pass


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (20_490_568, "20.5 MB"), (5 * 10**12, "5.0 TB")],
)
def test_human_bytes(n_bytes: int, text: str) -> None:
    assert human_bytes(n_bytes) == text


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
