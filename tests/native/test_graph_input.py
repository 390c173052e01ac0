"""The pixels that the vision tower was given, read from its graph's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion

from edgevlm.native import ggml_tensor, graph_input
from edgevlm.native.ggml_tensor import layout_fault
from edgevlm.native.graph_input import GraphInput
from edgevlm.native.projector import EncodedImage, Projector, open_projector
from edgevlm.native.text_model import ModelOptions, TextModel, open_text_model
from tests.goldens.files import drawn_image, redraw

RNG = np.random.default_rng(7)
# Multiples of patch size x merge, and within the limits: nothing is resized.
PIXELS = RNG.integers(0, 256, (96, 160, 3), dtype=np.uint8)
MEAN, STD = 0.5, 0.5  # of the built-in model


def encode(shapes_dir: Path, model: TextModel, pixels: np.ndarray) -> EncodedImage:
    path = shapes_dir / "mmproj-shapes-F16.gguf"
    with open_projector(path, model, n_threads=1, flash_attention="off", observe=True) as projector:
        return projector.encode(pixels)


def observed(shapes_dir: Path, model: TextModel, pixels: np.ndarray) -> GraphInput:
    seen = encode(shapes_dir, model, pixels).graph_input
    assert seen is not None
    return seen


def test_pixels_are_normalized_and_stand_by_channel(
    shapes_dir: Path, text_model: TextModel
) -> None:
    seen = observed(shapes_dir, text_model, PIXELS)
    assert seen.not_seen == ""
    (tile,) = seen.tiles
    assert tile.dtype == np.float32
    expected = ((PIXELS / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(tile, expected, rtol=0, atol=1e-6)


def test_resized_image_has_the_size_of_its_visual_tokens(
    shapes_dir: Path, text_model: TextModel
) -> None:
    pixels = np.full((70, 150, 3), 200, dtype=np.uint8)
    (tile,) = observed(shapes_dir, text_model, pixels).tiles
    assert tile.shape == (3, 64, 160)
    # The middle: libmtmd fills the rest with black where the two sizes differ in shape.
    np.testing.assert_allclose(tile[:, 8:56, 16:144], (200 / 255 - MEAN) / STD, rtol=0, atol=1e-6)


def test_every_tile_is_seen(tmp_path: Path) -> None:
    text, mmproj = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    plan = plan_conversion(redraw("smolvlm", tmp_path / "checkpoint"), outtype="f32")
    convert_checkpoint(plan, text_path=text, mmproj_path=mmproj)
    # Two by two tiles of 48 x 48: cut, not resized; then the whole image in 48 x 48.
    pixels = drawn_image("96x96-1")
    with (
        open_text_model(text, ModelOptions()) as model,
        open_projector(mmproj, model, n_threads=1, observe=True) as opened,
    ):
        encoded = opened.encode(pixels)
    assert encoded.graph_input is not None
    tiles = encoded.graph_input.tiles
    assert [tile.shape for tile in tiles] == [(3, 48, 48)] * 5
    assert len(tiles) == len(encoded.tiles)
    expected = ((pixels / 255 - [0.5, 0.45, 0.4]) / [0.5, 0.25, 0.3]).transpose(2, 0, 1)
    quarters = [expected[:, y : y + 48, x : x + 48] for y in (0, 48) for x in (0, 48)]
    for tile, quarter in zip(tiles, quarters, strict=False):
        np.testing.assert_allclose(tile, quarter, rtol=0, atol=1e-6)


def test_each_image_is_seen_alone(shapes_dir: Path, text_model: TextModel) -> None:
    path = shapes_dir / "mmproj-shapes-F16.gguf"
    with open_projector(path, text_model, n_threads=1, observe=True) as projector:
        first = projector.encode(PIXELS).graph_input
        second = projector.encode(PIXELS[:64]).graph_input
    assert first is not None
    assert second is not None
    assert [tile.shape for tile in first.tiles] == [(3, 96, 160)]
    assert [tile.shape for tile in second.tiles] == [(3, 64, 160)]


def test_watching_changes_nothing(
    shapes_dir: Path, text_model: TextModel, projector: Projector
) -> None:
    alone = projector.encode(PIXELS)
    watched = encode(shapes_dir, text_model, PIXELS)
    assert alone.graph_input is None
    np.testing.assert_array_equal(watched.tiles[0], alone.tiles[0])


def test_what_goes_wrong_in_the_callback_surfaces(
    shapes_dir: Path, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(node: int) -> tuple[int, ...]:
        raise MemoryError(f"no room for the sources of {node}")

    path = shapes_dir / "mmproj-shapes-F16.gguf"
    with open_projector(path, text_model, n_threads=1, observe=True) as projector:
        with monkeypatch.context() as patch:
            patch.setattr(graph_input, "tensor_sources", broken)
            with pytest.raises(MemoryError, match="no room for the sources"):
                projector.encode(PIXELS)
        after = projector.encode(PIXELS)
    assert after.graph_input is not None
    assert after.graph_input.tiles[0].shape == (3, 96, 160)


def test_unknown_layout_is_not_read(
    shapes_dir: Path, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(_: int) -> tuple[int, ...]:
        pytest.fail("a tensor of unknown layout was read")

    monkeypatch.setattr(graph_input, "layout_fault", lambda: "takes 400 bytes")
    monkeypatch.setattr(graph_input, "tensor_sources", unread)
    encoded = encode(shapes_dir, text_model, PIXELS)
    assert encoded.graph_input == GraphInput(tiles=(), not_seen="takes 400 bytes")
    assert encoded.tiles[0].shape[0] == 15


def test_graph_without_that_input(
    shapes_dir: Path, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_input, "INPUT_NAME", "another")
    seen = observed(shapes_dir, text_model, PIXELS)
    assert seen.tiles == ()
    assert seen.not_seen == "no node of the graph reads `another` as float32"


def test_layout_of_the_installed_ggml_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    check = layout_fault.__wrapped__
    assert check() == ""
    monkeypatch.setattr(ggml_tensor, "_OVERHEAD", 400)
    assert check() == "a tensor of the installed ggml takes 368 bytes, 400 are known"


def test_layout_is_checked_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of_another(_: int) -> str:
        return "another"

    monkeypatch.setattr(ggml_tensor, "tensor_name", name_of_another)
    assert "have moved" in layout_fault.__wrapped__()
