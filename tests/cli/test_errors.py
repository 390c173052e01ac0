"""What bad input gets: `error:` + `hint:`, exit 1, no traceback, nothing half-written."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from edgevlm.cli.app import main
from tests.cli.broken import BROKEN


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, words: tuple[str, ...] = ()) -> str:
    """Run the command line; return stderr of a user's error."""
    capsys.readouterr()
    status = main(list(arguments))
    captured = capsys.readouterr()
    assert status == 1, captured.err
    assert captured.err.startswith("error: ")
    assert "\nhint: " in captured.err
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    return captured.err


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint(
    name: str, shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, words = BROKEN[name]
    source = tmp_path / "source"
    shutil.copytree(shapes_checkpoint, source)
    break_it(source)
    out = tmp_path / "out"
    fails(capsys, "convert", str(source), "--out", str(out), "--level", "Q4_K_M", words=words)
    assert not out.exists()


def test_source_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    fails(capsys, "convert", str(missing), words=(str(missing),))
    (tmp_path / "file.bin").write_bytes(b"x")
    fails(capsys, "convert", str(tmp_path / "file.bin"))
    (tmp_path / "empty").mkdir()
    fails(capsys, "convert", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_output_exists(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["convert", str(shapes_checkpoint), "--name", "s", "--out", str(out)]
    assert main(arguments) == 0
    before = (out / "s-BF16.gguf").stat()
    fails(capsys, *arguments, words=("s-BF16.gguf", "--force"))
    assert (out / "s-BF16.gguf").stat().st_mtime_ns == before.st_mtime_ns
    assert main([*arguments, "--force"]) == 0
    assert (out / "s-BF16.gguf").stat().st_ino != before.st_ino


def test_another_checkpoint_in_the_folder(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(shapes_checkpoint), "--name", "s", "--out", str(out)]) == 0
    other = tmp_path / "other"
    shutil.copytree(shapes_checkpoint, other)
    (other / "extra.json").write_text("{}")
    fails(
        capsys,
        *("convert", str(other), "--name", "t", "--out", str(out)),
        words=("another checkpoint",),
    )
    assert not (out / "t-BF16.gguf").exists()


def test_disk_too_small(
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)

    def nearly_full(_: Path) -> object:
        return usage

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    out = tmp_path / "out"
    fails(
        capsys,
        "convert",
        str(shapes_checkpoint),
        "--out",
        str(out),
        words=("disk space", "10.0 MB"),
    )
    assert not out.exists()


def test_read_only_folder(
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root may write everywhere: the refusal comes from the system call, played here."""
    locked = tmp_path / "locked"
    locked.mkdir()
    real = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(locked)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    fails(
        capsys,
        *("convert", str(shapes_checkpoint), "--out", str(locked)),
        words=("Permission denied", str(locked)),
    )
    assert not list(locked.iterdir())


@pytest.mark.parametrize("how", ["truncated", "random", "empty", "text"])
@pytest.mark.parametrize("verb", ["inspect", "quantize", "chat"])
def test_broken_gguf(
    how: str, verb: str, shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.gguf"
    whole = (shapes_dir / "shapes-F16.gguf").read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) * 2 // 3],
            "random": random.Random(0).randbytes(100_000),
            "empty": b"",
            "text": b"GGUF is what this is not" * 100,
        }[how]
    )
    arguments = {
        "inspect": ("inspect", str(path)),
        "quantize": ("quantize", str(path), "--level", "Q4_K_M"),
        "chat": ("chat", "-m", str(path), "-p", "Hello"),
    }[verb]
    fails(capsys, *arguments, words=(str(path),))
    assert list(tmp_path.iterdir()) == [path]


def test_model_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (("chat", "-p", "x", "-m"), ("quantize", "--level", "Q8_0"), ("inspect",)):
        fails(capsys, *verb, str(tmp_path / "nothing"), words=("nothing",))


def test_level_that_does_not_exist(shapes_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, "quantize", str(shapes_dir), "--level", "Q9_Z", words=("Q9_Z", "Q4_K_M"))


def test_quantized_file_is_no_source(
    shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(shapes_dir / "shapes-Q4_K_M.gguf", tmp_path)
    fails(capsys, "quantize", str(tmp_path), "--level", "Q8_0", words=("16-bit",))
    assert not list(tmp_path.glob("*Q8_0*"))


def test_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "shapes"]) == 2
    assert main(["no-such-verb"]) == 2
    assert main(["convert", "x", "--outtype", "f8"]) == 2
    assert "Traceback" not in capsys.readouterr().err
