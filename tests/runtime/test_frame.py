"""Images on canvases (MiniCPM-V 4.7): places as transformers has them, files that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, string
from numpy.typing import NDArray

from edgevlm.errors import EdgeVLMError, GGUFError, ImageError, ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.channel_sums import ChannelSums
from edgevlm.native.projector import ImageChunk, TextChunk
from edgevlm.native.rope_positions import RopePositions
from edgevlm.native.text_context import ContextOptions
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.frame import Frame, Markers, framed
from edgevlm.runtime.frame_projector import MARKERS_KEY, image_encoder
from edgevlm.runtime.header import numbers
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.convert.mutations import mmproj, nothing, text
from tests.goldens.files import drawn_image, redraw
from tests.quantize.quantizing import quantize_file
from tests.runtime.broken_projectors import written

MARKERS = Markers(image_start=1, image_end=2, slice_start=3, slice_end=4, newline=5)
ROWS = {number: np.full(2, number, dtype=np.float32) for number in MARKERS.ids}
# The golden's, whose tokens around images stand last.
IDS = [300, 301, 302, 303, 10]


def piece(n_tokens: int) -> ImageChunk:
    return ImageChunk(
        n_tokens=n_tokens,
        n_positions_used=3,
        positions=np.zeros((4, n_tokens), np.int32),
        causal=True,
    )


def frame_of(*chunks: TextChunk | ImageChunk, grids: list[tuple[int, int]]) -> Frame:
    (frame,) = (
        chunk
        for chunk in framed(chunks, [[[grid] for grid in grids]], MARKERS, ROWS)
        if isinstance(chunk, Frame)
    )
    return frame


def words(*tokens: int) -> TextChunk:
    return TextChunk(tokens=tokens)


def test_a_whole_image_is_its_own_canvas() -> None:
    frame = frame_of(words(9, 1), piece(6), words(2, 9), grids=[(2, 3)])
    assert frame.ids == (1, *[-1] * 6, 2)
    assert frame.n_positions_used == 4
    assert frame.canvas[1].tolist() == [-1, 0, 0, 0, 1, 1, 1, 2]
    assert frame.canvas[2].tolist() == [-1, 0, 1, 2, 0, 1, 2, 3]
    assert not frame.canvas[[0, 3]].any()
    np.testing.assert_array_equal(frame.marks, [[1, 1], [2, 2]])


def test_slices_tile_the_canvas_over_which_the_whole_is_spread() -> None:
    """Numbers of transformers' `get_rope_index` for two rows of one slice each, of 1 x 3 tokens."""
    frame = frame_of(
        words(9, 1), piece(2), words(2, 3), piece(3), words(4, 5, 3), piece(3), words(4, 5, 9),
        grids=[(1, 2), (1, 3), (1, 3)],
    )  # fmt: skip
    assert frame.ids == (1, -1, -1, 2, 3, -1, -1, -1, 4, 5, 3, -1, -1, -1, 4, 5)
    assert frame.n_positions_used == 4
    assert frame.canvas[1].tolist() == [-1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    assert frame.canvas[2].tolist() == [-1, 0, 2, 3, 0, 0, 1, 2, 2, 3, 0, 0, 1, 2, 2, 0]


def test_the_cache_goes_by_the_order_of_reading() -> None:
    frame = frame_of(words(9, 1), piece(6), words(2, 5, 5, 9), grids=[(2, 3)])
    assert frame.positions[1].tolist() == list(range(10))
    assert not frame.positions[[0, 2, 3]].any()


@pytest.mark.parametrize(
    ("n", "length", "wanted"),
    # torch.linspace(0, length - 1, n).round()
    [
        (1, 7, [0]),
        (4, 4, [0, 1, 2, 3]),
        (7, 6, [0, 1, 2, 2, 3, 4, 5]),
        (3, 8, [0, 4, 7]),
        (9, 22, [0, 3, 5, 8, 10, 13, 16, 18, 21]),
    ],
)
def test_a_row_is_spread_as_torch_rounds(n: int, length: int, wanted: list[int]) -> None:
    slices = [words(2, 3), *[piece(length), words(4, 3)] * 1][:-1]
    frame = frame_of(words(9, 1), piece(n), *slices, words(4, 9), grids=[(1, n), (1, length)])
    assert frame.canvas[2, 1 : n + 1].tolist() == wanted


def test_a_piece_that_libmtmd_counts_otherwise() -> None:
    chunks, may_be = [words(9, 1), piece(65), words(2, 9)], [(14, 5), (13, 5), (8, 8)]
    (_, frame, _) = framed(chunks, [[may_be]], MARKERS, ROWS)
    assert isinstance(frame, Frame)
    assert frame.canvas[1].max() == 13
    with pytest.raises(ImageError, match="11 visual tokens"):
        frame_of(words(9, 1), piece(11), words(2, 9), grids=[(2, 3)])


# (width, height) of images of which libmtmd scales a piece again: its tokens (found with files).
SCALED_AGAIN = {(80, 1675): 68, (2296, 234): 69, (53, 1425): 72, (1129, 57): 66}


@pytest.mark.parametrize("size", SCALED_AGAIN)
def test_what_libmtmd_makes_of_long_pieces_is_known(size: tuple[int, int]) -> None:
    canvas = SliceCanvas(side=448, cell=56)
    products = {rows * columns for grids in canvas.token_grids(*size) for rows, columns in grids}
    assert SCALED_AGAIN[size] in products


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("minicpmv4_7", tmp_path_factory.mktemp("minicpm")), outtype="f32")


@pytest.fixture(scope="module")
def files(plan: ConversionPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written(plan, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def vlm(files: tuple[Path, Path]) -> Iterator[VLM]:
    model, projector = files
    with open_vlm(model=model, mmproj=projector, n_ctx=768, device="cpu", strict=True) as opened:
        yield opened


def logits_after(vlm: VLM, messages: list[Message], *, reuse: bool) -> NDArray[np.float32]:
    vlm.cache.prefill(vlm.layouter.lay_out(messages), vlm.layouter.projector, reuse=reuse)
    return vlm.cache.context.logits(1)[0]


def test_tokens_around_pieces_are_no_visual_ones(vlm: VLM) -> None:
    image = drawn_image("48x48-1")
    layout = vlm.layouter.lay_out([Message(role="user", content=(image, "\nWhat?"))])
    assert layout.n_tiles == (1,)
    assert vlm.count_visual_tokens(48, 48) == layout.n_visual_tokens == 45
    (frame,) = (chunk for chunk in layout.chunks if isinstance(chunk, Frame))
    # The line feed behind belongs to it.
    assert frame.n_tokens == 45 + 2 + 4 * 2 + 1 + 1
    assert frame.n_positions_used == 7


def test_a_second_question_reads_the_image_no_more(vlm: VLM) -> None:
    content = (drawn_image("48x48-1"), "What?")
    turns = [Message(role="user", content=content), Message(role="assistant", content=("It",))]
    asked = [*turns, Message(role="user", content=("And?",))]
    cold = logits_after(vlm, asked, reuse=False)
    logits_after(vlm, turns[:1], reuse=False)
    position = vlm.cache.context.position
    assert position < vlm.cache.n_used
    np.testing.assert_allclose(logits_after(vlm, asked, reuse=True), cold, atol=1e-4)


def test_an_image_in_several_batches(
    files: tuple[Path, Path], vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [drawn_image("48x48-1"), drawn_image("24x48-2")]
    whole = vlm.first_logits("What?", images)
    monkeypatch.setattr(ContextOptions, "n_batch", 7)
    model, projector = files
    with open_vlm(model=model, mmproj=projector, n_ctx=768, device="cpu", strict=True) as other:
        assert other.cache.context.n_batch == 7
        np.testing.assert_allclose(other.first_logits("What?", images), whole, atol=1e-4)


def test_sums_are_collected_beside_places(files: tuple[Path, Path], vlm: VLM) -> None:
    images = [drawn_image("48x24-1")]
    sums, (model, projector) = ChannelSums(), files
    with open_vlm(
        model=model, mmproj=projector, n_ctx=768, device="cpu", strict=True, sums=sums
    ) as other:
        found = other.first_logits("What?", images)
    np.testing.assert_allclose(found, vlm.first_logits("What?", images), atol=1e-4)
    assert {"text", "image", "vision"} <= set(sums.sums)


@pytest.mark.parametrize("level", ["F32", "Q8_0"])
def test_embeddings_of_tokens_are_the_files(
    files: tuple[Path, Path], vlm: VLM, tmp_path: Path, level: str
) -> None:
    model, projector = files
    if level != "F32":
        model = tmp_path / "text.gguf"
        quantize_file(files[0], model, text_encoder(load_profile(level)))
    text_file, _ = check_text_model(model)
    span = check_projector(projector, text_file)
    inner: Any = vlm.layouter.projector()
    encoder: Any = image_encoder(inner, span, text_file)
    (tensor,) = (one for one in gguf.GGUFReader(model).tensors if one.name == "token_embd.weight")
    wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    for number, row in encoder._rows.items():
        np.testing.assert_array_equal(row, wanted[number])


BROKEN: dict[str, list[int]] = {
    "of four": IDS[:4],
    "twice the same": [*IDS[:4], IDS[3]],
    "another token": [*IDS[:4], 11],
    "beyond the vocabulary": [1 << 20, *IDS[1:]],
}


@pytest.mark.parametrize("case", BROKEN)
def test_other_tokens_are_refused(plan: ConversionPlan, tmp_path: Path, case: str) -> None:
    broken = mmproj(nothing, {MARKERS_KEY: array("UINT32", BROKEN[case])})(plan)
    model, projector = written(broken, tmp_path)
    with pytest.raises((GGUFError, ModelLoadError)) as caught:
        check_projector(projector, check_text_model(model)[0])
    assert "canvas_markers" in caught.value.message or "to which" in caught.value.message
    assert caught.value.hint


def test_a_key_of_another_type_is_refused(plan: ConversionPlan, tmp_path: Path) -> None:
    model, projector = written(mmproj(nothing, {MARKERS_KEY: string("yes")})(plan), tmp_path)
    with pytest.raises(EdgeVLMError, match="canvas_markers"):
        check_projector(projector, check_text_model(model)[0])


def test_a_text_model_with_other_tokens_is_refused(plan: ConversionPlan, tmp_path: Path) -> None:
    tokens: Any = plan.text.metadata["tokenizer.ggml.tokens"].value
    values: list[str] = list(tokens)
    values[300], values[301] = values[301], values[300]
    changed = text(nothing, {"tokenizer.ggml.tokens": array("STRING", values)})(plan)
    model, projector = written(changed, tmp_path)
    with pytest.raises(ModelLoadError, match="token 300"):
        check_projector(projector, check_text_model(model)[0])


def test_positions_that_no_node_reads_are_an_error() -> None:
    rope = RopePositions()
    rope.begin()
    rope.end()
    rope.wanted = np.zeros((4, 2), np.int32)
    with pytest.raises(RuntimeError, match="inp_pos"):
        rope.end()


def test_headers_alone_name_the_tokens(files: tuple[Path, Path]) -> None:
    assert numbers(read_gguf(files[1]), MARKERS_KEY) == IDS
