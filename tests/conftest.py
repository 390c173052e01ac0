"""Fixtures that several areas share: the built-in model, converted and quantized once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.goldens.files import redraw
from tests.hub_server import HubServer, point_at

# A shell starts background jobs with SIGINT ignored, and every child inherits that: the tests of
# Ctrl-C would then wait for an interrupt that nobody hears.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asks the Hub; those of edgevlm.hub ask one of their own, on this machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = "/nonexistent"

LEVELS = ("Q8_0", "Q5_K_M", "Q4_K_M")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EDGEVLM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A golden's checkpoint by name, weights drawn again; never to be written."""

    @cache
    def drawn(name: str) -> Path:
        return redraw(name, tmp_path_factory.mktemp("golden") / "checkpoint")

    return drawn


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    """The built-in checkpoint's folder; never to be written."""
    from edgevlm.build.resolve import built_in_checkpoint

    return built_in_checkpoint()


@pytest.fixture(scope="session")
def shapes_assets() -> Path:
    """The built-in model's folder: checkpoint/, images/, prompts.jsonl."""
    from edgevlm.build.resolve import built_in_folder

    return built_in_folder()


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> Path:
    """A model directory with shapes at F16 and every level; never to be written."""
    from edgevlm.build.convert import convert_model
    from edgevlm.build.quantize import plan_quantization, quantize_model
    from edgevlm.model_dir import open_model_dir

    folder = tmp_path_factory.mktemp("models") / "shapes"
    convert_model(shapes_checkpoint, out=folder, name="shapes", outtype="f16")
    for level in LEVELS:
        plan = plan_quantization(open_model_dir(folder), level=level)
        quantize_model(plan)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that the environment names; the cache is `tmp_path/home/hub`."""
    with HubServer() as server, point_at(server.endpoint, tmp_path / "home", monkeypatch):
        yield server
