"""Fixtures of the converter's tests: the goldens' checkpoints, a tiny one, and its tricks."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.convert.tricks import EditHeader, EditJson, Header, split_safetensors
from tests.synthetic import write_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in one file; never to be written."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to break."""
    return shutil.copytree(tiny, tmp_path / "checkpoint")


@pytest.fixture
def edit_json(broken: Path) -> EditJson:
    """Change a JSON file of the broken checkpoint: (name, change in place)."""

    def edit(name: str, change: Callable[[Header], object]) -> None:
        path = broken / name
        value = json.loads(path.read_text(encoding="utf-8"))
        change(value)
        path.write_text(json.dumps(value), encoding="utf-8")

    return edit


@pytest.fixture
def edit_header(broken: Path) -> EditHeader:
    """Change the safetensors header of the broken checkpoint; the data stay as they are."""

    def edit(change: Callable[[Header], object]) -> None:
        path = broken / "model.safetensors"
        header, data = split_safetensors(path)
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    return edit
