"""InternVL's images: the grids of its own processor, tiles of our own, headers, memory."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.graph_input import GraphInput
from edgevlm.native.projector import BitmapPart, EncodedImage, ImageChunk, TextChunk, TextPart
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.tile_canvas import TileCanvas
from edgevlm.runtime.tiled_projector import TiledProjector
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, redraw

VISION = "clip.vision."


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("internvl", tmp_path_factory.mktemp("internvl")))


def written(plan: ConversionPlan, folder: Path) -> tuple[Path, Path]:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


@pytest.mark.parametrize(
    ("width", "height", "max_tiles", "grid"),
    [
        # As transformers' `get_optimal_tiled_canvas` answers for tiles of 448 pixels.
        (448, 448, 12, (1, 1)),
        (640, 480, 12, (4, 3)),
        (480, 640, 12, (3, 4)),
        (1920, 1080, 12, (4, 2)),
        (300, 300, 12, (1, 1)),
        (500, 500, 12, (1, 1)),
        (2000, 2000, 12, (3, 3)),
        (2000, 2000, 6, (2, 2)),
        (5000, 100, 12, (12, 1)),
        (100, 5000, 12, (1, 12)),
        (1500, 1000, 1, (1, 1)),
        (1, 1, 12, (1, 1)),
    ],
)
def test_grids_are_transformers(
    width: int, height: int, max_tiles: int, grid: tuple[int, int]
) -> None:
    assert TileCanvas(side=448, max_tiles=max_tiles).grid(width, height) == grid


def test_tiles_come_row_by_row_and_the_whole_image_behind_them() -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    for number in range(6):
        row, column = divmod(number, 3)
        pixels[10 * row : 10 * row + 10, 10 * column : 10 * column + 10] = number
    tiles = TileCanvas(side=10, max_tiles=6).cut(pixels)
    assert [int(tile.mean()) for tile in tiles[:6]] == list(range(6))
    assert all(tile.shape == (10, 10, 3) for tile in tiles)
    assert len(tiles) == 7
    assert len(TileCanvas(side=10, max_tiles=1).cut(pixels)) == 1


class _Recorder:
    """Stands for a projector: a row of embeddings an image, the image's mean in it."""

    def __init__(self, graph_input: GraphInput | None = None) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.graph_input = graph_input

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        del add_special
        self.sizes = [(part.width, part.height) for part in parts if isinstance(part, BitmapPart)]
        return []

    def encode(self, pixels: np.ndarray) -> EncodedImage:
        rows = np.full((1, 1), pixels.mean(), dtype=np.float32)
        return EncodedImage(
            tiles=(rows,), preprocess_ms=1.0, encode_ms=2.0, graph_input=self.graph_input
        )


def test_a_prompt_is_laid_out_for_what_will_be_encoded() -> None:
    recorder = _Recorder()
    projector = TiledProjector(recorder, TileCanvas(side=10, max_tiles=6))
    text = TextPart(text="a", parse_special=False)
    projector.tokenize([text, BitmapPart(width=45, height=29), BitmapPart(width=7, height=7)])
    assert recorder.sizes == [(30, 20), (10, 10)]


def test_what_each_tile_gave_is_put_together() -> None:
    seen = GraphInput(tiles=(np.zeros((3, 2, 2), dtype=np.float32),), not_seen="")
    projector = TiledProjector(_Recorder(seen), TileCanvas(side=10, max_tiles=6))
    image = projector.encode(np.zeros((20, 30, 3), dtype=np.uint8))
    assert len(image.tiles) == 7
    assert image.encode_ms == 14.0
    assert image.preprocess_ms >= 7.0
    assert image.graph_input is not None
    assert len(image.graph_input.tiles) == 7
    blind = TiledProjector(
        _Recorder(GraphInput(tiles=(), not_seen="why")), TileCanvas(side=10, max_tiles=1)
    ).encode(np.zeros((10, 10, 3), dtype=np.uint8))
    assert blind.graph_input is not None
    assert blind.graph_input.not_seen == "why"


@pytest.fixture(scope="module")
def vlm(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> Generator[VLM]:
    text, projector = written(plan, tmp_path_factory.mktemp("files"))
    with open_vlm(model=text, mmproj=projector, n_ctx=512, n_threads=1, device="cpu") as opened:
        yield opened


@pytest.mark.parametrize("grid", [(c, r) for c in range(1, 7) for r in range(1, 7) if c * r <= 6])
def test_libmtmd_counts_every_grid_right(vlm: VLM, grid: tuple[int, int]) -> None:
    """What it would cut by itself is what is encoded: tiles, and the whole image if several."""
    columns, rows = grid
    n_encodes = columns * rows + (columns * rows > 1)
    assert vlm.count_visual_tokens(16 * columns, 16 * rows) == 4 * n_encodes
    encoded = vlm.encode(drawn_image(f"{16 * rows}x{16 * columns}-1"))
    assert [len(tile) for tile in encoded.tiles] == [4] * n_encodes


def _number(key: str, value: int) -> Mutation:
    return mmproj(nothing, {f"{VISION}{key}": u32(value)})


BROKEN: dict[str, Mutation] = {
    "no tensor `v.class_embd`": mmproj(without("v.class_embd")),
    "no tensor `v.position_embd.weight`": mmproj(without("v.position_embd.weight")),
    "tensor `v.class_embd`": mmproj(instead("v.class_embd", "v.position_embd.weight")),
    "tensor `v.position_embd.weight`": _number("image_size", 24),
    "no tensor `v.blk.3.attn_q.weight`": mmproj(without("v.blk.3.attn_q.weight")),
    "tensor `v.blk.0.ls1.weight`": mmproj(instead("v.blk.0.ls1.weight", "mm.model.mlp.0.weight")),
    "tensor `v.blk.0.ffn_up.weight`": _number("feed_forward_length", 80),
    "tensor `v.patch_embd.weight`": _number("patch_size", 2),
    "no tensor `mm.model.mlp.1.weight`": mmproj(without("mm.model.mlp.1.weight")),
    "no tensor `v.blk.4.": _number("block_count", 5),
    "merges 3 x 3 of 4 x 4 patches": _number("projector.scale_factor", 3),
    "merges 0 x 0": _number("projector.scale_factor", 0),
    "3 attention heads": _number("attention.head_count", 3),
    "into 2 to 6 tiles": _number("preproc_min_tiles", 2),
    "into 1 to 0 tiles": _number("preproc_max_tiles", 0),
    "into 1 to 145 tiles": _number("preproc_max_tiles", 145),
}


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_file_that_would_end_the_process_is_refused(
    plan: ConversionPlan, tmp_path: Path, blamed: str
) -> None:
    text, projector = written(BROKEN[blamed](plan), tmp_path)
    with pytest.raises(GGUFError) as caught:
        check_projector(projector, check_text_model(text)[0])
    assert blamed in caught.value.message
    assert caught.value.hint


def test_a_file_without_numbers_of_tiles_has_libmtmds(plan: ConversionPlan, tmp_path: Path) -> None:
    without_keys = mmproj(
        nothing, {f"{VISION}preproc_{name}_tiles": None for name in ("min", "max")}
    )
    text, projector = written(without_keys(plan), tmp_path)
    span = check_projector(projector, check_text_model(text)[0])
    assert span.canvas == TileCanvas(side=16, max_tiles=12)


def test_more_tiles_take_more_memory(plan: ConversionPlan, tmp_path: Path) -> None:
    text, projector = map(read_gguf, written(plan, tmp_path))

    def vision(width: int, height: int) -> int:
        size = (width, height)
        return predict_footprint(text, projector, n_ctx=512, image_sizes=[size]).vision_compute

    tiles = vision(48, 32) - vision(16, 16)
    n_source = 3 * (48 * 32 - 16 * 16)
    assert tiles - n_source >= 6 * (4 * 4 * 64)
