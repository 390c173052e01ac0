"""A text model and a projector of the built-in model, opened once a module."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from edgevlm.native.projector import Projector, open_projector
from edgevlm.native.text_model import ModelOptions, TextModel, open_text_model


@pytest.fixture(scope="module")
def text_model(shapes_dir: Path) -> Generator[TextModel]:
    with open_text_model(shapes_dir / "shapes-F16.gguf", ModelOptions()) as model:
        yield model


@pytest.fixture(scope="module")
def projector(shapes_dir: Path, text_model: TextModel) -> Generator[Projector]:
    path = shapes_dir / "mmproj-shapes-F16.gguf"
    with open_projector(path, text_model, n_threads=1, flash_attention="off") as opened:
        yield opened
