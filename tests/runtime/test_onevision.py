"""LLaVA-OneVision's images: as many tokens as its processor counts, pictures shrunk to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.metadata import u32

from edgevlm.errors import GGUFError
from edgevlm.runtime.anyres_canvas import AnyresCanvas
from edgevlm.runtime.preflight import check_projector, check_text_model
from tests.convert.mutations import mmproj, nothing
from tests.goldens.files import redraw

NEWLINE = np.array([-1.0, -2.0], dtype="<f4").tobytes()
PUBLISHED = AnyresCanvas(
    side=384,
    cells=27,
    grids=tuple((columns, rows) for rows in range(1, 7) for columns in range(1, 7)),
    newline=NEWLINE,
    max_tiles=9,
)
# Width and height: columns and rows of tiles, tokens; by transformers' LlavaOnevisionProcessor
# (5.23) with the published grids.
COUNTS: Mapping[tuple[int, int], tuple[tuple[int, int], int]] = {
    (640, 480): ((2, 2), 2929),
    (384, 384): ((1, 1), 1485),
    (1000, 200): ((3, 1), 2123),
    (1920, 1080): ((5, 3), 7269),
    (2304, 2304): ((6, 6), 7371),
    (4000, 300): ((6, 1), 2848),
    (1, 1): ((1, 1), 1485),
    (3024, 4032): ((5, 6), 7332),
    (300, 5000): ((1, 6), 2349),
}


@pytest.mark.parametrize("size", COUNTS, ids=str)
def test_as_many_tokens_as_the_checkpoints_processor_counts(size: tuple[int, int]) -> None:
    assert (PUBLISHED.grid(*size), PUBLISHED.n_tokens(*size)) == COUNTS[size]


def test_a_picture_is_shrunk_to_means_of_its_cells() -> None:
    canvas = AnyresCanvas(side=10, cells=2, grids=((2, 2),), newline=NEWLINE, max_tiles=1)
    tiles = [np.full((4, 2), number, dtype=np.float32) for number in range(5)]
    # 4 x 4 cells of four tiles, then 2 x 2 that each stand for four cells of one tile.
    rows = canvas.joined(tiles, 20, 20)
    assert len(rows) == canvas.n_tokens(20, 20) == 4 + 2 * 3
    np.testing.assert_array_equal(rows[:, 0], [0, 0, 0, 0, 1, 2, -1, 3, 4, -1])
    ramp = [np.arange(4, dtype=np.float32)[:, None].repeat(2, axis=1)] * 5
    np.testing.assert_array_equal(canvas.joined(ramp, 20, 20)[4:6, 0], [1.5, 1.5])


def test_a_picture_of_few_tiles_is_left() -> None:
    loose = AnyresCanvas(side=10, cells=2, grids=((2, 2),), newline=NEWLINE, max_tiles=4)
    assert loose.n_tokens(20, 20) == 4 + 4 * 5


@pytest.mark.parametrize("n_tiles", [0, 145, 1 << 31])
def test_an_absurd_number_of_tiles_is_refused(tmp_path: Path, n_tiles: int) -> None:
    plan = plan_conversion(redraw("llava_onevision", tmp_path / "checkpoint"), outtype="f32")
    broken = mmproj(nothing, {"edgevlm.anyres_max_tiles": u32(n_tiles)})(plan)
    paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    convert_checkpoint(broken, text_path=paths[0], mmproj_path=paths[1])
    with pytest.raises(GGUFError, match="shrinks an image") as caught:
        check_projector(paths[1], check_text_model(paths[0])[0])
    assert caught.value.hint
