"""The model directory and its manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import GGUFError, ManifestError, SourceNotFoundError
from edgevlm.files import sha256_file
from edgevlm.manifest import MANIFEST_NAME, read_manifest
from edgevlm.model_dir import open_model_dir


@pytest.fixture
def model(shapes_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_dir, folder)  # copy2: times are kept
    return folder


def test_manifest_says_what_is_there(shapes_dir: Path, shapes_checkpoint: Path) -> None:
    manifest = read_manifest(shapes_dir)
    assert manifest is not None
    assert {entry.name for entry in manifest.files} == {
        path.name for path in shapes_dir.glob("*.gguf")
    }
    for entry in manifest.files:
        path = shapes_dir / entry.name
        assert entry.n_bytes == path.stat().st_size
        assert entry.sha256 == sha256_file(path)
        assert sum(count.n_bytes for count in entry.tensor_types.values()) < entry.n_bytes
    assert manifest.source.path == str(shapes_checkpoint)
    assert manifest.source.sha256["model.safetensors"] == sha256_file(
        shapes_checkpoint / "model.safetensors"
    )
    ledger = manifest.ledger
    assert ledger.n_source_tensors == len(ledger.used) + len(ledger.dropped)
    assert "llama-cpp-python" in manifest.versions


def test_files_newest_first(shapes_dir: Path) -> None:
    model = open_model_dir(shapes_dir)
    assert [file.level for file in model.of_role("text")] == ["Q4_K_M", "Q5_K_M", "Q8_0", "F16"]
    assert {file.level for file in model.of_role("mmproj")} == {"F16", "Q8_0"}
    assert all(file.known for file in model.files)
    baseline = model.baseline("text")
    assert baseline is not None
    assert baseline.level == "F16"
    found = model.find("text", "q8_0")
    assert found is not None
    assert found.path.name == "shapes-Q8_0.gguf"


def test_a_cut_file_is_refused(model: Path) -> None:
    with (model / "shapes-F16.gguf").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(GGUFError, match=r"shapes-F16\.gguf"):
        open_model_dir(model)


def test_a_file_written_after_its_manifest_is_not_known(model: Path) -> None:
    with (model / "shapes-Q8_0.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    opened = open_model_dir(model)
    assert {file.path.name for file in opened.files if not file.known} == {"shapes-Q8_0.gguf"}


def test_files_without_a_manifest(model: Path) -> None:
    (model / MANIFEST_NAME).unlink()
    opened = open_model_dir(model)
    assert opened.manifest is None
    assert {(file.role, file.level) for file in opened.files} == {
        ("text", "F16"),
        ("text", "Q8_0"),
        ("text", "Q5_K_M"),
        ("text", "Q4_K_M"),
        ("mmproj", "F16"),
        ("mmproj", "Q8_0"),
    }


def test_a_broken_neighbour_is_left_out_and_said(model: Path) -> None:
    (model / "other.gguf").write_bytes(b"GGUF but no more")
    opened = open_model_dir(model)
    assert len(opened.files) == 6
    assert any("other.gguf" in why for why in opened.skipped)


def test_only_broken_files(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(GGUFError, match=r"other\.gguf"):
        open_model_dir(tmp_path)


def test_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no GGUF"):
        open_model_dir(tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schema_version": 99}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"files": None}, "files"),
        ({"files": [{"name": "../../etc/passwd"}]}, "files.0.name"),
        ({"files": [{"name": "a.gguf", "n_bytes": "many"}]}, "files.0"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_a_broken_manifest_names_the_key(model: Path, change: dict[str, Any], word: str) -> None:
    path = model / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ManifestError, match=re.escape(word)) as caught:
        open_model_dir(model)
    assert MANIFEST_NAME in caught.value.hint


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_json(model: Path, raw: bytes) -> None:
    (model / MANIFEST_NAME).write_bytes(raw)
    with pytest.raises(ManifestError):
        open_model_dir(model)
