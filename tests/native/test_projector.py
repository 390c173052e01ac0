"""libmtmd: layout without pixels, embeddings as numpy, our own decode against its helper."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import ImageError, ModelLoadError
from edgevlm.native.library import load_library
from edgevlm.native.projector import (
    BitmapPart,
    ImageChunk,
    Projector,
    TextChunk,
    TextPart,
    open_projector,
)
from edgevlm.native.text_context import ContextOptions, open_context
from edgevlm.native.text_model import TextModel

# F16 weights: another batch size takes another kernel, which rounds otherwise.
ATOL = 0.02
RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 255, (96, 160, 3), dtype=np.uint8)
PARTS = [
    TextPart(text="<|im_start|>", parse_special=True),
    TextPart(text="user\n", parse_special=False),
    BitmapPart(width=160, height=96),
    TextPart(text="what?", parse_special=False),
]


def image_of(chunks: list[TextChunk | ImageChunk]) -> ImageChunk:
    return next(chunk for chunk in chunks if isinstance(chunk, ImageChunk))


def test_layout_without_pixels(projector: Projector) -> None:
    chunks = projector.tokenize(PARTS)
    before, image, after = chunks
    assert isinstance(before, TextChunk)
    assert isinstance(after, TextChunk)
    assert before.tokens[0] == 1  # <|im_start|>
    assert before.tokens[-1] == 3  # <|vision_start|>, written by libmtmd
    assert after.tokens[0] == 4  # <|vision_end|>
    image = image_of(chunks)
    # 160 x 96 at 32 pixels a token: 5 columns, 3 rows; the next text stands 5 positions on.
    assert (image.n_tokens, image.n_positions_used, image.causal) == (15, 5, True)
    rows, columns = np.divmod(np.arange(15), 5)
    expected = np.stack([np.zeros(15), rows, columns, np.zeros(15)])
    np.testing.assert_array_equal(image.positions, expected)


def test_encode_gives_a_row_for_each_visual_token(
    projector: Projector, text_model: TextModel
) -> None:
    encoded = projector.encode(PIXELS)
    (tile,) = encoded.tiles
    assert tile.shape == (15, text_model.n_embd_inp)
    assert tile.dtype == np.float32
    assert encoded.encode_ms > 0
    np.testing.assert_array_equal(projector.encode(PIXELS).tiles[0], tile)
    assert np.abs(projector.encode(255 - PIXELS).tiles[0] - tile).max() > 0.01


def test_own_decode_equals_the_helper_of_libmtmd(
    projector: Projector, text_model: TextModel
) -> None:
    options = ContextOptions(n_ctx=256, n_threads=1, kv_type="F32", flash_attention="off")
    chunks = projector.tokenize(PARTS)
    with open_context(text_model, options) as context:
        for chunk in chunks:
            if isinstance(chunk, TextChunk):
                context.decode_tokens(chunk.tokens, n_logits=1)
                continue
            context.decode_embeddings(
                projector.encode(PIXELS).tiles[0],
                chunk.positions + np.int32(context.position),
                n_positions_used=chunk.n_positions_used,
            )
        ours = context.logits(1)[0]
    np.testing.assert_allclose(
        ours, _logits_of_the_helper(projector, text_model, options), atol=ATOL
    )


def _logits_of_the_helper(
    projector: Projector, model: TextModel, options: ContextOptions
) -> np.ndarray:
    library = load_library()
    mtmd: Any = library.mtmd
    handle: int = vars(projector)["_handle"]
    data = np.ascontiguousarray(PIXELS)
    bitmap = mtmd.mtmd_bitmap_init(160, 96, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
    text = b"<|im_start|>user\n<__media__>what?"
    prompt = mtmd.mtmd_input_text(
        text=text, text_len=len(text), add_special=False, parse_special=True
    )
    chunks = mtmd.mtmd_input_chunks_init()
    try:
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        assert mtmd.mtmd_tokenize(handle, chunks, ctypes.byref(prompt), bitmaps, 1) == 0
        with open_context(model, options) as context:
            n_past = ctypes.c_int32()
            assert (
                mtmd.mtmd_helper_eval_chunks(
                    handle, context.handle, chunks, 0, 0, 512, True, ctypes.byref(n_past)
                )
                == 0
            )
            pointer = library.llama.llama_get_logits_ith(context.handle, -1)
            return np.ctypeslib.as_array(pointer, shape=(model.n_vocab,)).copy()
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)


def test_image_split_over_batches(projector: Projector, text_model: TextModel) -> None:
    rows = projector.encode(PIXELS).tiles[0]
    image = image_of(projector.tokenize(PARTS))
    found: list[np.ndarray] = []
    for n_batch in (512, 4):
        options = ContextOptions(
            n_ctx=64, n_batch=n_batch, n_threads=1, kv_type="F32", flash_attention="off"
        )
        with open_context(text_model, options) as context:
            context.decode_embeddings(rows, image.positions, n_positions_used=5)
            context.decode_tokens([10], n_logits=1)
            assert (context.n_used, context.position) == (16, 6)
            found.append(context.logits(1))
    np.testing.assert_allclose(found[0], found[1], atol=ATOL)


def test_image_that_must_be_seen_whole(projector: Projector, text_model: TextModel) -> None:
    rows = projector.encode(PIXELS).tiles[0]
    positions = image_of(projector.tokenize(PARTS)).positions
    options = ContextOptions(n_ctx=64, n_batch=4, n_threads=1)
    with (
        open_context(text_model, options) as context,
        pytest.raises(ModelLoadError, match="15 tokens must be decoded whole"),
    ):
        context.decode_embeddings(rows, positions, n_positions_used=5, causal=False)


def test_image_beyond_what_libmtmd_resizes(projector: Projector) -> None:
    with pytest.raises(ImageError, match="out of range"):
        projector.encode(np.zeros((100_000, 1, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["shapes-F16.gguf", "edgevlm.json"])
def test_file_that_is_no_projector(shapes_dir: Path, text_model: TextModel, name: str) -> None:
    with (
        pytest.raises(ModelLoadError, match="cannot load the projector") as caught,
        open_projector(shapes_dir / name, text_model, n_threads=1),
    ):
        pytest.fail("it was opened")
    assert "mmproj" in caught.value.hint
