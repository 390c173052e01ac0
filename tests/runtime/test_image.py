"""Images: what people have becomes upright RGB on white; what is hostile is an ImageError."""

from __future__ import annotations

import base64
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from edgevlm.errors import ImageError
from edgevlm.runtime.image import load_image

RED = (200, 30, 40)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


AVIF = ["AVIF"] if features.check("avif") else []


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", *AVIF])
def test_formats(form: str) -> None:
    pixels = load_image(encoded(Image.new("RGB", (7, 5), RED), form))
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - RED).max() <= 6


def test_path_bytes_and_data_url_are_the_same(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (3, 2), RED), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    first = load_image(path)
    for source in (str(path), data, url):
        np.testing.assert_array_equal(load_image(source), first)


def test_broken_lines_in_a_data_url() -> None:
    data = encoded(Image.new("RGB", (30, 20), RED), "PNG")
    url = "data:image/png;base64," + base64.encodebytes(data).decode()
    assert "\n" in url.strip()
    assert load_image(url).shape == (20, 30, 3)


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def test_heic_without_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match="is HEIC, and no decoder") as caught:
        load_image(HEIC)
    assert "pip install 'pillow-heif'" in caught.value.hint


def test_heic_with_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """pillow-heif registers itself with Pillow; here something that knows one picture does."""

    class Opener(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (3, 2), "RGB"
            self.tile = []

        def load(self) -> None:
            self.im = Image.new("RGB", (3, 2), RED).im

    def register_heif_opener() -> None:
        Image.register_open("HEIF", Opener, lambda head: head[4:12] == b"ftypheic")

    module = ModuleType("pillow_heif")
    vars(module)["register_heif_opener"] = register_heif_opener
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert load_image(HEIC)[0, 0].tolist() == list(RED)
    with pytest.raises(ImageError, match="the limit is 5"):
        load_image(HEIC, max_pixels=5)


def test_first_frame_of_a_tiff() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert load_image(data)[0, 0].tolist() == list(RED)


def test_grey_with_alpha_stands_on_white() -> None:
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (90, 255))
    assert load_image(encoded(image, "PNG"))[0].tolist() == [[255] * 3, [90] * 3]


def test_sixteen_bit_colour() -> None:
    """A PNG of 16 bits a channel, which Pillow reads and cannot write."""
    pixel = struct.pack(">HHH", *(value * 257 for value in RED))
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + pixel)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        data += struct.pack(">I", len(part)) + kind + part
        data += struct.pack(">I", zlib.crc32(kind + part))
    assert load_image(data)[0, 0].tolist() == list(RED)


def test_cmyk_jpeg() -> None:
    pixels = load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(pixels[4, 4].astype(int) - (255, 0, 0)).max() <= 6


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (4, 2), (255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown rotated by 90 degrees clockwise
    pixels = load_image(encoded(image, "PNG", exif=exif.tobytes()))
    assert pixels.shape == (4, 2, 3)
    assert pixels[0, 1].tolist() == [0, 0, 0]


def test_alpha_stands_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    pixels = load_image(encoded(image, "PNG"))
    assert pixels[0].tolist() == [[255, 255, 255], list(RED)]


def test_transparent_palette_stands_on_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 1)
    pixels = load_image(encoded(image, "PNG", transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], list(RED)]


def test_cmyk() -> None:
    pixels = load_image(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"))
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_keeps_its_greys() -> None:
    values = np.array([[0, 128 * 256, 65535]], dtype=np.uint16)
    pixels = load_image(encoded(Image.fromarray(values), "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(load_image(data)[0, 0].astype(int) - RED).max() <= 6


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few hundred bytes that claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no image\n" * 20, "no image that can be read"),
    "truncated": (encoded(Image.new("RGB", (200, 200), RED), "PNG")[:-60], "damaged or truncated"),
    "half a jpeg": (
        encoded(Image.effect_noise((300, 300), 90), "JPEG")[:5000],
        "damaged or truncated",
    ),
    "bomb": (png_that_claims(100_000, 100_000), "far larger than 50,000,000 pixels"),
    "above the limit": (png_that_claims(7100, 7100), "7100x7100, 50,410,000 pixels"),
    "less data than claimed": (png_that_claims(500, 500), "damaged or truncated"),
    "avif": (b"\0\0\0\x18ftypavif" + b"\0" * 100, "AVIF|no image that can be read|damaged"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "no image that can be read"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that can be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    data, words = HOSTILE[name]
    path = tmp_path / "hostile.png"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(ImageError, match=words) as caught:
            load_image(source)
        assert caught.value.hint


def test_random_bytes_behind_real_headers() -> None:
    rng = np.random.default_rng(11)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        good = encoded(Image.effect_noise((40, 40), 50).convert("RGB"), form)
        for _ in range(40):
            data = bytearray(good)
            for place in rng.integers(8, len(data), 12):
                data[place] = rng.integers(256)
            try:
                pixels = load_image(bytes(data))
            except ImageError:
                continue
            assert pixels.ndim == 3


def test_limits_can_be_set() -> None:
    data = encoded(Image.new("RGB", (10, 10), RED), "PNG")
    with pytest.raises(ImageError, match="the limit is 99"):
        load_image(data, max_pixels=99)
    with pytest.raises(ImageError, match="the limit is"):
        load_image(data, max_bytes=10)


def missing(folder: Path) -> Path:
    return folder / "missing.png"


def directory(folder: Path) -> Path:
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def oversized(folder: Path) -> Path:
    with (folder / "large.png").open("wb") as file:
        file.truncate(101_000_000)
    return folder / "large.png"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "there is no"),
        (directory, "cannot read|is no file"),
        (pipe, "is no file"),
        (oversized, "the limit is"),
    ],
)
def test_paths_that_hold_no_image(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        load_image(make(tmp_path))
    assert caught.value.hint


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,@@@", "data:,"])
def test_broken_data_urls(url: str) -> None:
    with pytest.raises(ImageError):
        load_image(url)


def test_a_name_with_a_zero_byte() -> None:
    with pytest.raises(ImageError):
        load_image("a\0b.png")
