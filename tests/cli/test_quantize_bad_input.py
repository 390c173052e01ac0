"""What `edgevlm quantize` answers to a hostile file, a full disk, a locked folder and Ctrl-C.

Always `error:` and `hint:`, never a traceback, and the folder is as it was.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.cli.app import main
from edgevlm.files import sha256_file
from edgevlm.gguf_file import read_gguf
from edgevlm.model_dir import open_model_dir
from edgevlm.progress import Advance, Unit

Damage = Callable[[bytes], bytes]
TEXT = "shapes-F16.gguf"
# Where the counts of tensors and keys stand, behind magic and version.
_N_TENSORS, _N_KEYS = 8, 16


@pytest.fixture
def folder(tmp_path: Path, shapes_dir: Path) -> Path:
    """Copies of the 16-bit files alone."""
    target = tmp_path / "m"
    target.mkdir()
    for name in (TEXT, f"mmproj-{TEXT}"):
        shutil.copy(shapes_dir / name, target / name)
    return target


def listing(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["quantize", *(str(argument) for argument in arguments)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "\nhint: " in err
    return err


def _at(place: int, form: str, value: int) -> Damage:
    raw = struct.pack(form, value)
    return lambda data: data[:place] + raw + data[place + len(raw) :]


def _behind(text: bytes, offset: int, form: str, value: int) -> Damage:
    """Write a number `offset` bytes behind the first occurrence of a name."""

    def damage(data: bytes) -> bytes:
        return _at(data.index(text) + len(text) + offset, form, value)(data)

    return damage


def _swapped(before: bytes, after: bytes) -> Damage:
    def damage(data: bytes) -> bytes:
        assert before in data
        return data.replace(before, after, 1)

    return damage


_FIRST = b"blk.0.attn_k.weight"
# Behind a matrix's name: number of dimensions, two of them, type, offset.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "big-endian": (_at(4, ">I", 3), "is a big-endian GGUF file"),
    "version 1": (_at(4, "<I", 1), "is GGUF version 1"),
    "version 9": (_at(4, "<I", 9), "is GGUF version 9; versions 2 and 3 are known"),
    "2^60 tensors": (_at(_N_TENSORS, "<Q", 1 << 60), f"claims {1 << 60} tensors"),
    "2^60 keys": (_at(_N_KEYS, "<Q", 1 << 60), f"claims {1 << 60} metadata keys"),
    "a key of 2^60 bytes": (_at(24, "<Q", 1 << 60), f"metadata key of {1 << 60} bytes"),
    "a text of 2^60 bytes": (_behind(b"general.architecture", 4, "<Q", 1 << 60), "is truncated"),
    "a tensor twice": (_swapped(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "twice"),
    # Both have 20 characters.
    "a key twice": (
        _swapped(b"tokenizer.ggml.model", b"general.architecture"),
        "has the metadata key `general.architecture` twice",
    ),
    "overlapping": (_behind(_FIRST, 24, "<Q", 0), "overlapping"),
    "outside of the file": (_behind(_FIRST, 24, "<Q", 1 << 40), "is truncated: tensor"),
    "an unaligned offset": (_behind(_FIRST, 24, "<Q", 1), "unaligned offset"),
    "an unknown type": (_behind(_FIRST, 20, "<I", 99), "unknown tensor type 99"),
    "2^80 weights": (_behind(_FIRST, 12, "<Q", 1 << 60), "impossible shape"),
    "5 dimensions": (_behind(_FIRST, 0, "<I", 5), "5 dimensions"),
    "cut in the middle": (lambda data: data[: len(data) // 2], "is truncated"),
    "no GGUF": (lambda data: b"PK" + data[2:], "is not a GGUF file"),
    "empty": (lambda data: b"", "is not a GGUF file"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_hostile_file(
    damage: Damage, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = folder / TEXT
    text.write_bytes(damage(text.read_bytes()))
    before = listing(folder)
    assert message in fails(capsys, text, "--level", "Q4_K_M")
    # In a folder it is left out, and said so where nothing else can be taken.
    assert message in fails(capsys, folder, "--level", "Q4_K_M")
    assert listing(folder) == before


def test_version_2_is_quantized(folder: Path, shapes_dir: Path) -> None:
    text = folder / TEXT
    text.write_bytes(_at(4, "<I", 2)(text.read_bytes()))
    assert read_gguf(text).version == 2
    assert main(["quantize", str(folder), "--level", "Q4_K_M", "-q"]) == 0
    made = folder / "shapes-Q4_K_M.gguf"
    assert sha256_file(made) == sha256_file(shapes_dir / made.name)


_LIMITED = """
import resource, sys
from edgevlm.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(main(["quantize", sys.argv[1], "--level", "Q8_0"]))
"""


def test_the_file_system_is_full_in_the_middle(folder: Path) -> None:
    """The kernel itself refuses what lies beyond 2 MB of a file."""
    before = listing(folder)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: cannot write into `{folder}`: File too large")
    assert "\nhint: check the folder's permissions and its disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(folder) == before


class _FullDisk:
    """A file whose disk is full after so many bytes."""

    def __init__(self, n_bytes: int) -> None:
        self.n_left = n_bytes

    def take(self, piece: bytes) -> None:
        self.n_left -= len(piece)
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("n_bytes", [0, 10_000, 3_000_000, 5_000_000])
def test_the_disk_is_full_in_the_middle(
    n_bytes: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the header, in the text model, in the projector; while the disk is watched by nobody."""
    from edgevlm.build.written import WrittenFile

    before, disk = listing(folder), _FullDisk(n_bytes)
    real = WrittenFile.follow

    def follow(self: WrittenFile, piece: bytes) -> None:
        disk.take(piece)
        real(self, piece)

    monkeypatch.setattr(WrittenFile, "follow", follow)
    err = fails(capsys, folder, "--level", "Q8_0")
    assert "No space left on device" in err
    assert listing(folder) == before


def test_the_disk_is_too_small(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, usage = listing(folder), shutil.disk_usage(folder)._replace(free=1_000_000)

    def nearly_full(_: Path) -> object:
        return usage

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    assert "not enough disk space" in fails(capsys, folder, "--level", "Q8_0")
    assert listing(folder) == before


def test_a_folder_that_cannot_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superuser may write anywhere: the system's answer is played where the test is his."""
    before = listing(folder)
    folder.chmod(0o555)
    if os.geteuid() == 0:
        real = os.open

        def refused(path: object, flags: int, *rest: int) -> int:
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(str(path), flags, *rest)

        monkeypatch.setattr(os, "open", refused)
    err = fails(capsys, folder, "--level", "Q8_0")
    assert f"cannot write into `{folder}`: Permission denied" in err
    folder.chmod(0o755)
    assert listing(folder) == before


class _Interrupted:
    """Bars at which somebody presses Ctrl-C when `limit` bytes are done."""

    def __init__(self, limit: int) -> None:
        self.n_left = limit

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        def advance(amount: int, /) -> None:
            self.n_left -= amount
            if self.n_left <= 0:
                raise KeyboardInterrupt

        yield advance


@pytest.mark.parametrize("n_bytes", [1, 2_000_000, 6_000_000])
def test_ctrl_c_leaves_nothing(n_bytes: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the text model and in the projector; the old level stays."""
    quantize_model(plan_quantization(open_model_dir(folder), level="Q8_0"))
    before = listing(folder)
    plan = plan_quantization(open_model_dir(folder), level="Q8_0", force=True)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(plan, force=True, progress=_Interrupted(n_bytes))
    assert listing(folder) == before

    def progress_for(**_: bool) -> _Interrupted:
        return _Interrupted(n_bytes)

    monkeypatch.setattr("edgevlm.cli.console.progress_for", progress_for)
    assert main(["quantize", str(folder), "--level", "Q8_0", "--force"]) == 130
    assert listing(folder) == before
