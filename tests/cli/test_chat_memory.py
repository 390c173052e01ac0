"""`edgevlm chat` asks for memory before it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli.app import main
from edgevlm.gguf_file import read_gguf
from edgevlm.native.devices import Device
from edgevlm.native.system import Memory
from edgevlm.runtime import memory as memory_module
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.worker import Worker


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(
        total_n_bytes=1 << 30,
        available_n_bytes=64_000_000,
        swap_n_bytes=0,
        swap_free_n_bytes=0,
        cgroup=None,
        source="MemAvailable",
    )
    monkeypatch.setattr(memory_module, "read_memory", lambda: memory)


def ask(model: Path, *options: str) -> int:
    question = ("chat", "-m", str(model), "-p", "Hello", "--max-tokens", "2", "--threads", "1")
    return main([*question, "--ctx", "2048", *options])


@pytest.mark.usefixtures("little_memory")
def test_what_does_not_fit_is_refused_with_what_would(
    shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(shapes_dir / "shapes-F16.gguf") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: `shapes-F16.gguf` needs" in captured.err
    assert "64.0 MB are available" in captured.err
    assert "hint: " in captured.err
    assert "`--yes` tries it anyway" in captured.err


@pytest.mark.usefixtures("little_memory")
def test_yes_tries_it_anyway(shapes_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(shapes_dir / "shapes-F16.gguf", "--yes") == 0
    assert capsys.readouterr().out.strip()


def test_a_small_card_takes_the_layers_it_has_room_for(
    shapes_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = read_gguf(shapes_dir / "shapes-F16.gguf")
    compute = predict_footprint(file, None, n_ctx=2048).text_compute
    card = Device(
        name="CUDA0",
        description="a card",
        backend="CUDA",
        kind="gpu",
        total_n_bytes=1 << 30,
        free_n_bytes=(512 << 20) + compute + 5_000_000,
    )
    opened: list[dict[str, Any]] = []
    open_model = Worker.open

    def note_and_open(self: Worker, options: dict[str, Any]) -> None:
        opened.append(options)
        open_model(self, options)

    monkeypatch.setattr(Worker, "open", note_and_open)
    monkeypatch.setattr(Worker, "devices", lambda self: (card,))  # type: ignore[misc]
    monkeypatch.setattr("edgevlm.native.devices.gpu_libraries", lambda: ("cuda",))
    monkeypatch.setattr(memory_module, "gpu_libraries", lambda: ("cuda",))
    assert ask(shapes_dir / "shapes-F16.gguf") == 0
    assert 0 < opened[0]["gpu_layers"] < 5
    assert f"{opened[0]['gpu_layers']} of 5 layers have room" in capsys.readouterr().err
    assert ask(shapes_dir / "shapes-F16.gguf", "--gpu-layers", "4") == 0
    assert opened[1]["gpu_layers"] == 4
    assert "have room" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--kv-type", "q8_0"), ("--flash-attention", "off")])
def test_the_kv_cache_is_what_is_asked(options: tuple[str, str], shapes_dir: Path) -> None:
    assert ask(shapes_dir / "shapes-F16.gguf", *options) == 0


def test_a_kv_cache_that_cannot_be_is_refused(
    shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--kv-type", "q8_0", "--flash-attention", "off")
    assert ask(shapes_dir / "shapes-F16.gguf", *options) == 1
    assert "needs flash attention" in capsys.readouterr().err
