"""LLaVA-NeXT's images: which grid, what is cut, how the tiles are joined, and what is kept."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import array
from edgevlm_convert.writer import OutputTensor

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import (
    BitmapPart,
    EncodedImage,
    ImageChunk,
    TextChunk,
    TextPart,
)
from edgevlm.runtime.anyres_canvas import AnyresCanvas
from edgevlm.runtime.anyres_projector import AnyresProjector
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.layout import VISUAL_TOKEN
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import Mutation, instead, mmproj, nothing, without
from tests.goldens.files import drawn_image, redraw

# The published grids of LLaVA 1.6: columns and rows of tiles.
PUBLISHED = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
NEWLINE = np.array([-1.0, -2.0], dtype="<f4").tobytes()
PINPOINTS = "clip.vision.image_grid_pinpoints"


def canvas(side: int = 336, cells: int = 24) -> AnyresCanvas:
    return AnyresCanvas(side=side, cells=cells, grids=PUBLISHED, newline=NEWLINE)


# Counted by transformers' LlavaNextProcessor (5.23) with patches of 14, the class token taken away.
@pytest.mark.parametrize(
    ("size", "grid", "n_tokens"),
    [
        ((640, 480), (2, 2), 2340),
        ((480, 640), (2, 2), 2352),
        ((336, 336), (2, 1), 1176),
        ((672, 672), (2, 2), 2928),
        ((1000, 200), (3, 1), 1598),
        ((200, 1000), (1, 3), 1656),
        ((1, 1), (2, 1), 1176),
        ((4000, 1), (2, 1), 576),
    ],
)
def test_grids_and_tokens_are_those_of_the_checkpoints_processor(
    size: tuple[int, int], grid: tuple[int, int], n_tokens: int
) -> None:
    assert canvas().grid(*size) == grid
    assert canvas().n_tokens(*size) == n_tokens


def test_the_whole_image_comes_first_then_tiles_with_black_beside_it() -> None:
    pixels = np.full((20, 10, 3), 200, dtype=np.uint8)
    # Of 2 x 2 tiles 10 x 20 pixels are filled in the middle.
    square = AnyresCanvas(side=10, cells=2, grids=((2, 2),), newline=NEWLINE)
    whole, *tiles = square.cut(pixels)
    assert whole.shape == (10, 10, 3)
    assert whole.min() == 200
    assert len(tiles) == 4
    for number, tile in enumerate(tiles):
        filled = tile[:, 5:] if number % 2 == 0 else tile[:, :5]
        black = tile[:, :5] if number % 2 == 0 else tile[:, 5:]
        assert filled.min() == 200
        assert black.max() == 0


def test_tiles_are_joined_row_by_row_and_rid_of_the_black() -> None:
    square = AnyresCanvas(side=10, cells=2, grids=((2, 2),), newline=NEWLINE)
    # Tile by tile, cell by cell: the overview is 0 to 3, the tiles are 10, 20, 30 and 40 and on.
    tiles = [
        np.repeat(np.arange(4, dtype=np.float32)[:, None] + 10 * number, 2, axis=1)
        for number in range(5)
    ]

    def joined(width: int, height: int) -> list[int]:
        rows = square.joined(tiles, width, height)
        assert rows.dtype == np.float32
        assert len(rows) == square.n_tokens(width, height)
        # The vector that ends a row is told by its two values.
        assert all(row[0] == row[1] or tuple(row) == (-1, -2) for row in rows)
        return [int(row[0]) for row in rows]

    overview = [0, 1, 2, 3]
    assert joined(20, 20) == [
        *overview,
        *(10, 11, 20, 21, -1),
        *(12, 13, 22, 23, -1),
        *(30, 31, 40, 41, -1),
        *(32, 33, 42, 43, -1),
    ]
    assert joined(20, 10) == [*overview, 12, 13, 22, 23, -1, 30, 31, 40, 41, -1]
    assert joined(10, 20) == [*overview, 11, 20, -1, 13, 22, -1, 31, 40, -1, 33, 42, -1]
    # A row is a quarter of the picture: what fills less of one is black throughout.
    assert joined(400, 10) == overview


class _Encoder:
    """Stands for a projector: one encode an image, of four rows."""

    def __init__(self, n_encodes: int = 1) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._n_encodes = n_encodes

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        chunks: list[TextChunk | ImageChunk] = []
        for part in parts:
            if isinstance(part, TextPart):
                chunks.append(TextChunk(tokens=(int(add_special),)))
                continue
            self.sizes.append((part.width, part.height))
            positions = np.arange(4, dtype=np.int32)[None]
            chunk = ImageChunk(n_tokens=4, n_positions_used=4, positions=positions, causal=True)
            chunks += [chunk] * self._n_encodes
        return chunks

    def encode(self, pixels: np.ndarray) -> EncodedImage:
        rows = np.full((4, 2), pixels.mean(), dtype=np.float32)
        return EncodedImage(tiles=(rows,), preprocess_ms=1.0, encode_ms=2.0)


SMALL = AnyresCanvas(side=10, cells=2, grids=((2, 1), (2, 2)), newline=NEWLINE)


def test_an_image_is_one_chunk_of_as_many_tokens_as_it_becomes() -> None:
    encoder = _Encoder()
    projector = AnyresProjector(encoder, SMALL)
    text = TextPart(text="a", parse_special=False)
    parts = [text, BitmapPart(width=40, height=40), text, BitmapPart(width=40, height=20)]
    chunks = projector.tokenize(parts, add_special=True)
    assert encoder.sizes == [(10, 10), (10, 10)]
    counts = [chunk.n_tokens for chunk in chunks if isinstance(chunk, ImageChunk)]
    assert counts == [4 + 4 * 5, 4 + 2 * 5]
    for chunk in chunks:
        if isinstance(chunk, ImageChunk):
            assert chunk.n_positions_used == chunk.n_tokens
            assert chunk.positions.tolist() == [list(range(chunk.n_tokens))]
    image = projector.encode(np.full((20, 40, 3), 7, dtype=np.uint8))
    (rows,) = image.tiles
    assert len(rows) == counts[1]
    assert image.encode_ms == 6.0
    assert image.preprocess_ms >= 3.0


def test_more_than_one_encode_of_a_tile_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="more than one encode"):
        AnyresProjector(_Encoder(2), SMALL).tokenize([BitmapPart(width=4, height=4)])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    folder = tmp_path_factory.mktemp("next")
    return plan_conversion(redraw("llava_next_clip_mistral", folder), outtype="f32")


def written(plan: ConversionPlan, folder: Path) -> tuple[Path, Path]:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


@pytest.fixture(scope="module")
def vlm(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> Generator[VLM]:
    text, projector = written(plan, tmp_path_factory.mktemp("files"))
    with open_vlm(
        model=text, mmproj=projector, n_ctx=512, n_threads=1, device="cpu", strict=True
    ) as opened:
        yield opened


@pytest.mark.parametrize("size", ["1x1", "25x25", "50x50", "200x13", "13x200", "90x61"])
def test_what_is_counted_is_what_is_encoded(vlm: VLM, size: str) -> None:
    image = drawn_image(f"{size}-1")
    height, width, _ = image.shape
    (rows,) = vlm.encode(image).tiles
    assert len(rows) == vlm.count_visual_tokens(width, height)
    assert np.isfinite(rows).all()
    assert vlm.token_ids("What?", [image]).count(VISUAL_TOKEN) == len(rows)


def test_tiles_are_given_to_the_tower_as_they_were_cut(vlm: VLM) -> None:
    seen = vlm.encode(drawn_image("44x31-1")).graph_input
    assert seen is not None
    assert seen.not_seen == ""
    assert [tile.shape for tile in seen.tiles] == [(3, 25, 25)] * 5
    # Black before it is normalized: left of a tall image in its grid.
    black = (0 - np.array([0.5, 0.45, 0.4])) / np.array([0.5, 0.25, 0.3])
    np.testing.assert_allclose(seen.tiles[1][:, :, 0], black[:, None].repeat(25, 1), atol=1e-6)


def test_a_second_question_keeps_the_image_and_answers_as_a_cold_run(vlm: VLM) -> None:
    image, params = drawn_image("44x31-1"), SamplingParams(max_tokens=4)
    first = [Message(role="user", content=(image, "What is in the image?"))]
    vlm.forget()
    answer = vlm.generate(first, params=params)
    assert answer.timings.encode_ms > 0
    more = [
        *first,
        Message(role="assistant", content=(answer.text,)),
        Message(role="user", content=("And the color?",)),
    ]
    warm = vlm.generate(more, params=params)
    assert warm.timings.encode_ms == 0
    assert warm.n_reused_tokens > 72
    vlm.forget()
    cold = vlm.generate(more, params=params)
    assert cold.timings.encode_ms > 0
    assert cold.token_ids == warm.token_ids


def test_an_image_that_moves_is_not_encoded_again(vlm: VLM) -> None:
    image, params = drawn_image("44x31-2"), SamplingParams(max_tokens=2)
    vlm.forget()
    vlm.generate([Message(role="user", content=(image, "What?"))], params=params)
    moved = [Message(role="user", content=("Look here: ", image, "What?"))]
    answer = vlm.generate(moved, params=params)
    assert answer.timings.encode_ms == 0
    vlm.forget()
    assert vlm.generate(moved, params=params).token_ids == answer.token_ids


def test_the_first_converters_name_of_the_newline_is_read(
    plan: ConversionPlan, vlm: VLM, tmp_path: Path
) -> None:
    def renamed(tensors: dict[str, OutputTensor]) -> None:
        tensors["model.image_newline"] = tensors.pop("v.image_newline")

    text, projector = written(mmproj(renamed)(plan), tmp_path)
    image = drawn_image("44x31-1")
    with open_vlm(
        model=text, mmproj=projector, n_ctx=512, n_threads=1, device="cpu", strict=True
    ) as opened:
        np.testing.assert_array_equal(opened.encode(image).tiles[0], vlm.encode(image).tiles[0])


def test_without_a_newline_libmtmd_cuts_as_it_does(plan: ConversionPlan, tmp_path: Path) -> None:
    text, projector = written(mmproj(without("v.image_newline"))(plan), tmp_path)
    span = check_projector(projector, check_text_model(text)[0])
    assert span.canvas is None


BROKEN: dict[str, Mutation] = {
    "scales images into [25, 50, 25]": mmproj(nothing, {PINPOINTS: array("INT32", [25, 50, 25])}),
    "scales images into [25, 30]": mmproj(nothing, {PINPOINTS: array("INT32", [25, 30])}),
    "scales images into [0, 25]": mmproj(nothing, {PINPOINTS: array("INT32", [0, 25])}),
    "scales images into [-25, -25]": mmproj(nothing, {PINPOINTS: array("INT32", [-25, -25])}),
    "scales images into [325, 325]": mmproj(nothing, {PINPOINTS: array("INT32", [325, 325])}),
    "tensor `v.image_newline`": mmproj(instead("v.image_newline", "v.class_embd")),
}


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_one_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    text, projector = written(BROKEN[blamed](plan), tmp_path)
    with pytest.raises(GGUFError) as caught:
        check_projector(projector, check_text_model(text)[0])
    assert blamed in caught.value.message
    assert caught.value.hint


def test_a_newline_in_16_bits_is_refused(plan: ConversionPlan, tmp_path: Path) -> None:
    def halved(tensors: dict[str, OutputTensor]) -> None:
        one = tensors["v.image_newline"]
        info = replace(one.info, type="F16")
        tensors["v.image_newline"] = replace(one, info=info)

    text, projector = written(mmproj(halved)(plan), tmp_path)
    with pytest.raises(GGUFError, match="as F16, not F32"):
        check_projector(projector, check_text_model(text)[0])


def test_memory_of_more_tiles(plan: ConversionPlan, tmp_path: Path) -> None:
    text, projector = map(read_gguf, written(plan, tmp_path))

    def vision(size: tuple[int, int]) -> int:
        found = predict_footprint(text, projector, n_ctx=512, image_sizes=[size])
        return found.vision_compute - 3 * size[0] * size[1]

    two, four = vision((25, 25)), vision((50, 50))
    # Rows of embeddings wait three times, pixels once.
    more = 2 * (16 * 96 * 4 * 3 + 25 * 25 * 6)
    assert four - two == more
