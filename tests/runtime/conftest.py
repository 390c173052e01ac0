"""The built-in model, loaded once a module; images of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

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
def picture(shapes_assets: Path) -> Callable[[int], Pixels]:
    def load(number: int) -> Pixels:
        return load_image(shapes_assets / "images" / f"{number:03}.png")

    return load


@pytest.fixture
def noise() -> Pixels:
    return np.random.default_rng(5).integers(0, 255, (96, 160, 3), dtype=np.uint8)
