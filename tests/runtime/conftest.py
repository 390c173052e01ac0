"""The built-in model, loaded once a module; images of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

from edgevlm.build.convert import convert_model
from edgevlm.runtime.image import load_image
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM, open_vlm


@pytest.fixture(scope="module")
def vlm(shapes_dir: Path) -> Generator[VLM]:
    with open_vlm(
        model=shapes_dir / "shapes-F16.gguf",
        mmproj=shapes_dir / "mmproj-shapes-F16.gguf",
        n_ctx=512,
        n_threads=1,
        strict=True,
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def shapes_f32(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> Path:
    """The built-in model in F32, where a batch's size changes no more than the last digits."""
    folder = tmp_path_factory.mktemp("f32") / "shapes"
    convert_model(shapes_checkpoint, out=folder, name="shapes", outtype="f32")
    return folder


@pytest.fixture(scope="module")
def exact(shapes_f32: Path) -> Generator[VLM]:
    with open_vlm(
        model=shapes_f32 / "shapes-F32.gguf",
        mmproj=next(shapes_f32.glob("mmproj-*.gguf")),
        n_ctx=512,
        n_threads=1,
        strict=True,
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def picture(shapes_assets: Path) -> Callable[[int], Pixels]:
    def load(number: int) -> Pixels:
        return load_image(shapes_assets / "images" / f"{number:03}.png")

    return load


@pytest.fixture
def noise() -> Pixels:
    return np.random.default_rng(5).integers(0, 255, (96, 160, 3), dtype=np.uint8)
