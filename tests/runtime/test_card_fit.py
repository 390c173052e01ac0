"""Cards that are not here: how much of a model goes there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.gguf_file import GGUFFile, read_gguf
from edgevlm.native.devices import Device
from edgevlm.native.system import Memory
from edgevlm.runtime import memory as memory_module
from edgevlm.runtime.card_fit import CardFit, card_n_bytes, fit_layers, own_memory, place
from edgevlm.runtime.footprint import Footprint, predict_footprint
from edgevlm.runtime.memory import check_memory

CUDA = Device(
    name="CUDA0",
    description="a card",
    backend="CUDA",
    kind="gpu",
    total_n_bytes=8 << 30,
    free_n_bytes=6 << 30,
)
OVERHEAD = 512 << 20


@pytest.fixture(scope="module")
def text(shapes_dir: Path) -> GGUFFile:
    return read_gguf(shapes_dir / "shapes-F16.gguf")


@pytest.fixture(scope="module")
def need(text: GGUFFile, shapes_dir: Path) -> Footprint:
    mmproj = read_gguf(shapes_dir / "mmproj-shapes-F16.gguf")
    return predict_footprint(text, mmproj, n_ctx=4096)


def card(room: int) -> Device:
    return replace(CUDA, free_n_bytes=OVERHEAD + room)


def fixed(need: Footprint) -> int:
    return need.text_compute + need.vision_compute + need.mmproj


def test_a_model_with_room_is_left_alone(text: GGUFFile, need: Footprint) -> None:
    fit = fit_layers(text, need, [CUDA])
    assert (fit.n_gpu_layers, fit.n_layers, fit.is_usable) == (None, 5, True)
    placed = place(fit, "auto", None)
    assert (placed.device, placed.gpu_layers, placed.note) == ("auto", None, "")


def test_layers_are_taken_from_the_last_while_there_is_room(
    text: GGUFFile, need: Footprint
) -> None:
    largest = max(tensor.n_bytes for tensor in text.tensors)
    weights = sum(tensor.n_bytes for tensor in text.tensors if "blk." in tensor.name)
    layer = (weights + need.kv_cache) // 4
    # Tied: the output is a copy of the embedding.
    output = text.n_data_bytes - weights
    room = fixed(need) + largest + output
    counts = [fit_layers(text, need, [card(room + n * layer + 8)]).n_gpu_layers for n in range(4)]
    assert counts == [1, 2, 3, 4]
    placed = place(fit_layers(text, need, [card(room + layer + 8)]), "auto", None)
    assert (placed.device, placed.gpu_layers) == ("auto", 2)
    assert "2 of 5 layers" in placed.note


def test_without_the_staging_of_a_matrix_all_of_it_fits(text: GGUFFile, need: Footprint) -> None:
    whole = card_n_bytes(text, need)
    assert whole == fixed(need) + text.n_data_bytes + need.kv_cache
    assert fit_layers(text, need, [card(whole)]).n_gpu_layers is None
    partly = fit_layers(text, need, [card(whole - 8)]).n_gpu_layers
    assert partly is not None
    assert partly < 5


def test_a_card_without_any_room_is_left_out_unless_it_was_asked_for(
    text: GGUFFile, need: Footprint
) -> None:
    fit = fit_layers(text, need, [card(fixed(need))])
    assert (fit.n_gpu_layers, fit.is_usable) == (0, False)
    placed = place(fit, "auto", None)
    assert (placed.device, placed.gpu_layers) == ("cpu", None)
    assert "no room" in placed.note
    assert place(fit, "cuda", None).device == "cuda"
    assert place(None, "auto", 3).gpu_layers == 3


def test_every_card_computes_and_one_has_the_projector(text: GGUFFile, need: Footprint) -> None:
    whole = fixed(need) + text.n_data_bytes + need.kv_cache
    halves = [card(whole // 2), card(whole // 2 + 8)]
    assert fit_layers(text, need, halves).n_gpu_layers is not None
    halves = [card((whole + need.text_compute) // 2 + 8)] * 2
    assert fit_layers(text, need, halves).n_gpu_layers is None


def test_memory_of_the_machine_is_not_a_card_s() -> None:
    metal = replace(CUDA, name="MTL0", backend="MTL")
    board = replace(CUDA, kind="igpu")
    cpu = replace(CUDA, name="CPU", backend="CPU", kind="cpu")
    assert own_memory([metal, board, cpu, CUDA]) == (CUDA,)


def machine(available: int) -> Memory:
    return Memory(
        total_n_bytes=8 << 30,
        available_n_bytes=available,
        swap_n_bytes=0,
        swap_free_n_bytes=0,
        cgroup=None,
        source="MemAvailable",
    )


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "gpu_libraries", lambda: ("cuda",))


@pytest.mark.usefixtures("gpu_build")
def test_a_card_that_is_full_is_no_memory_of_the_model(text: GGUFFile) -> None:
    check = check_memory(
        text.path, None, n_ctx=256, memory=machine(1 << 20), found=[card(0)], override=True
    )
    assert (check.gpu_free_n_bytes, check.fits) == (0, False)
    check = check_memory(text.path, None, n_ctx=256, memory=machine(1 << 20), found=[CUDA])
    assert check.fit == CardFit(n_gpu_layers=None, n_layers=5)


@pytest.mark.usefixtures("gpu_build")
def test_layers_that_the_user_counted_are_not_counted_again(text: GGUFFile) -> None:
    check = check_memory(
        text.path,
        None,
        n_ctx=256,
        gpu_layers=0,
        memory=machine(1 << 20),
        found=[CUDA],
        override=True,
    )
    # No layers and no projector: nothing is on the card.
    assert (check.fit, check.gpu_free_n_bytes, check.fits) == (None, 0, False)


def test_a_build_without_a_gpu_asks_nobody(text: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "devices", lambda: pytest.fail("asked"))
    monkeypatch.setattr(memory_module, "gpu_libraries", lambda: ())
    assert check_memory(text.path, None, n_ctx=256, memory=machine(8 << 30)).fit is None
