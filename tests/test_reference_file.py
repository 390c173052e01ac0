"""Reference files: what is written is read; what is broken or hostile is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.errors import ReferenceFileError
from edgevlm.reference_file import (
    VISUAL_TOKEN,
    Case,
    CaseImage,
    Reference,
    image_sha256,
    read_reference,
    without_repeats,
    write_reference,
)

Arrays = dict[str, NDArray[Any]]


def reference() -> Reference:
    image = CaseImage(
        name="a.png",
        sha256="0" * 64,
        pixels=(np.ones((3, 4, 5), dtype=np.float32), np.zeros((3, 2, 2), dtype=np.float32)),
        embeddings=np.arange(12, dtype=np.float32).reshape(3, 4),
    )
    bare = CaseImage(name="b.png", sha256="1" * 64)
    case = Case(
        name="two",
        prompt="What? Caf\u00e9",
        images=(image, bare),
        input_ids=np.asarray([1, VISUAL_TOKEN, 2], dtype=np.int32),
        answer=np.asarray([7, 8], dtype=np.int32),
        top_ids=np.asarray([[7, 3], [8, 3]], dtype=np.int32),
        top_logprobs=np.log(np.asarray([[0.6, 0.3], [0.5, 0.4]], dtype=np.float32)),
        tail_mass=np.asarray([0.1, 0.1], dtype=np.float32),
    )
    return Reference(made_by="numpy", cases=(case,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_reference(tmp_path / "ref.npz", reference())
    return tmp_path / "ref.npz"


def test_it_is_read_as_it_was_written(path: Path) -> None:
    written, read = reference(), read_reference(path)
    assert read.made_by == written.made_by
    theirs, ours = written.cases[0], read.cases[0]
    assert (ours.name, ours.prompt) == (theirs.name, theirs.prompt)
    for key in ("input_ids", "answer", "top_ids", "top_logprobs", "tail_mass"):
        np.testing.assert_array_equal(getattr(ours, key), getattr(theirs, key))
    assert [image.name for image in ours.images] == ["a.png", "b.png"]
    for mine, other in zip(ours.images[0].pixels, theirs.images[0].pixels, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(ours.images[0].embeddings, theirs.images[0].embeddings)
    assert ours.images[1].pixels == ()
    assert ours.images[1].embeddings is None


def test_an_image_is_known_by_size_and_pixels() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    other = image.copy()
    other[1, 2, 0] = 1
    assert image_sha256(image) == image_sha256(image.copy())
    assert len({image_sha256(one) for one in (image, other, image.reshape(3, 2, 3))}) == 3


def _changed(**arrays: Any) -> Callable[[Arrays], object]:
    return lambda stored: stored.update({key: np.asarray(value) for key, value in arrays.items()})


def _without(key: str) -> Callable[[Arrays], object]:
    return lambda stored: stored.pop(key)


BROKEN: dict[str, Callable[[Arrays], object]] = {
    "no version": _without("format_version"),
    "another version": _changed(format_version=1),
    "a version that is no number": _changed(format_version="two"),
    "no cases": _without("cases"),
    "cases that are no JSON": _changed(cases="{"),
    "no prompt": _changed(cases="[]"),
    "a list of numbers": _changed(cases="[1]"),
    "an array is missing": _without("case0.answer"),
    "an image's array is missing": _without("case0.image0.pixels1"),
    "another dtype": _changed(**{"case0.answer": np.asarray([1.0, 2.0])}),
    "another shape": _changed(**{"case0.tail_mass": np.zeros(3, dtype=np.float32)}),
    "NaN": _changed(**{"case0.top_logprobs": np.full((2, 2), np.nan, dtype=np.float32)}),
    "no tokens": _changed(
        **{
            "case0.top_ids": np.zeros((2, 0), dtype=np.int32),
            "case0.top_logprobs": np.zeros((2, 0), dtype=np.float32),
        }
    ),
    "a tail that is no probability": _changed(
        **{"case0.tail_mass": np.asarray([0.1, np.nan], dtype=np.float32)}
    ),
    "pixels that are no numbers": _changed(
        **{"case0.image0.pixels1": np.full((3, 2, 2), np.inf, dtype=np.float32)}
    ),
    "pixels of four channels": _changed(
        **{"case0.image0.pixels1": np.zeros((4, 2, 2), dtype=np.float32)}
    ),
    "embeddings that are no numbers": _changed(
        **{"case0.image0.embeddings": np.full((3, 4), np.nan, dtype=np.float32)}
    ),
    "no embeddings": _changed(**{"case0.image0.embeddings": np.zeros((0, 4), dtype=np.float32)}),
    "JSON without end": _changed(cases="[" * 100_000),
    "images without end": _changed(
        cases='[{"name": "a", "prompt": "", "images": [{"n_pixels": 1000000000000}]}]'
    ),
    "no probability": _changed(**{"case0.top_logprobs": np.ones((2, 2), dtype=np.float32)}),
}


@pytest.mark.parametrize("change", BROKEN)
def test_what_is_broken_is_refused(path: Path, change: str) -> None:
    with np.load(path) as stored:
        arrays: Arrays = dict(stored)
    BROKEN[change](arrays)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ReferenceFileError) as caught:
        read_reference(path)
    assert "edgevlm reference" in caught.value.hint


def test_pickles_are_not_read(path: Path) -> None:
    with np.load(path) as stored:
        arrays: Arrays = dict(stored)
    arrays["made_by"] = np.asarray([{"a": 1}], dtype=object)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ReferenceFileError, match="pickle"):
        read_reference(path)


def test_what_is_no_reference_file(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="there is no file"):
        read_reference(tmp_path / "nowhere.npz")
    text = tmp_path / "text.npz"
    text.write_text("hello", encoding="utf-8")
    with pytest.raises(ReferenceFileError, match="is no reference file"):
        read_reference(text)
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ReferenceFileError):
        read_reference(tmp_path / "zip.npz")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.reference_file._MAX_BYTES", 1000)
    write_reference(tmp_path / "ref.npz", reference())
    with pytest.raises(ReferenceFileError, match="it unpacks to"):
        read_reference(tmp_path / "ref.npz")


def test_what_unpacks_to_far_more_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm.reference_file._PLAIN_BYTES", 1 << 20)
    with (tmp_path / "bomb.npz").open("wb") as file:
        np.savez_compressed(file, zeros=np.zeros(1 << 20, dtype=np.float32))
    with pytest.raises(ReferenceFileError, match=r"it unpacks to 1 arrays of 4.* MB, from"):
        read_reference(tmp_path / "bomb.npz")


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("(1000000000000,)", "<f4"),
        ("(2147483647, 2147483647, 2147483647)", "<f4"),
        ("(-1,)", "<f4"),
        ("(1000000,)", "<U1000000"),
        ("(1,)", "|O"),
        ("(" + "9" * 5000 + ",)", "<f4"),
        ("(" * 5000, "<f4"),
    ],
)
def test_a_shape_is_not_taken_for_granted(path: Path, shape: str, dtype: str) -> None:
    """No memory is asked for that the file's own bytes do not bear out."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("case9.answer.npy", header(shape, dtype) + bytes(64))
    with pytest.raises(ReferenceFileError):
        read_reference(path)


def test_a_file_that_was_cut(path: Path) -> None:
    raw = path.read_bytes()
    for length in range(0, len(raw), 37):
        path.write_bytes(raw[:length])
        with pytest.raises(ReferenceFileError):
            read_reference(path)


def test_what_is_known_of_an_image_is_kept_once() -> None:
    case = reference().cases[0]
    first, again = without_repeats([case, case])
    assert first.images[0].embeddings is not None
    assert first.images[0].pixels
    assert again.images[0].embeddings is None
    assert again.images[0].pixels == ()
    assert again.images[0].sha256 == first.images[0].sha256
    (few,) = without_repeats([case], n_values=71)
    assert few.images[0].pixels == ()
    assert few.images[0].embeddings is not None
    (all_of_them,) = without_repeats([case], n_values=72)
    assert all_of_them.images[0].pixels


def test_random_damage_is_a_typed_error(path: Path) -> None:
    raw = path.read_bytes()
    random = np.random.default_rng(3)
    n_refused = 0
    for _ in range(300):
        damaged = bytearray(raw)
        for place in random.integers(0, len(raw), size=4):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_reference(path)
        except ReferenceFileError:
            n_refused += 1
    assert n_refused > 200
