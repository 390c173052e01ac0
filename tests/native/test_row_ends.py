"""What llama.cpp loses between the rows of an image is put back, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from numpy.typing import NDArray

from edgevlm.native import projector as native
from edgevlm.native.row_ends import with_row_ends
from edgevlm.runtime.vlm import open_vlm
from tests.goldens.files import drawn_image, redraw

N_EMBD = 6
END = np.arange(1, N_EMBD + 1, dtype="<f4") / 8


def image(n_columns: int, n_rows: int) -> NDArray[np.float32]:
    """Return the embeddings of an image of so many visual tokens, with its rows' ends."""
    rows = np.random.default_rng(1).normal(size=((n_columns + 1) * n_rows, N_EMBD))
    rows[n_columns :: n_columns + 1] = END
    return rows.astype(np.float32)[:-1]


@pytest.mark.parametrize(("n_columns", "n_rows"), [(4, 3), (3, 4), (1, 5), (5, 2), (2, 2), (7, 9)])
@pytest.mark.parametrize("columns", [slice(None), slice(2, 3)], ids=["all", "one value"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_any_end_is_put_back(n_columns: int, n_rows: int, columns: slice, value: float) -> None:
    whole = image(n_columns, n_rows)
    for row in range(n_columns, len(whole), n_columns + 1):
        rows = whole.copy()
        rows[row, columns] = value
        np.testing.assert_array_equal(with_row_ends(rows, END.tobytes()), whole)
    every = whole.copy()
    every[n_columns :: n_columns + 1, columns] = value
    np.testing.assert_array_equal(with_row_ends(every, END.tobytes()), whole)


def test_what_is_whole_is_left_alone() -> None:
    whole = image(4, 3)
    assert with_row_ends(whole, END.tobytes()) is whole
    whole[4] = np.nan
    assert with_row_ends(whole, b"") is whole


@pytest.mark.parametrize("also", [(), (4,), (4, 9)])
def test_another_fault_is_still_seen(also: tuple[int, ...]) -> None:
    rows = image(4, 3)
    rows[[6, *also]] = np.nan
    assert with_row_ends(rows, END.tobytes()) is rows


def test_an_end_with_other_numbers_is_left_alone() -> None:
    rows = image(4, 3)
    rows[4, 0], rows[4, 1] = np.nan, 99
    assert with_row_ends(rows, END.tobytes()) is rows


@pytest.mark.parametrize("row", range(6))
def test_an_image_whose_tokens_make_no_rows_has_no_end(row: int) -> None:
    rows = image(6, 1)
    rows[row] = np.nan
    assert with_row_ends(rows, END.tobytes()) is rows


@pytest.mark.parametrize("name", ["pixtral", "mistral3"])
def test_the_projector_of_a_model_does_so(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, mmproj = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    plan = plan_conversion(redraw(name, tmp_path / "checkpoint"), outtype="f32")
    convert_checkpoint(plan, text_path=text, mmproj_path=mmproj)
    pixels = drawn_image("48x64-1")
    with open_vlm(model=text, mmproj=mmproj, n_ctx=512, device="cpu", strict=True) as vlm:
        (expected,) = vlm.encode(pixels).tiles

        def broken(rows: NDArray[np.float32], end: bytes) -> NDArray[np.float32]:
            rows[[4, 9]] = np.nan
            return with_row_ends(rows, end)

        monkeypatch.setattr(native, "with_row_ends", broken)
        (found,) = vlm.encode(pixels).tiles
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found[[4, 9]], expected[[4, 9]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
