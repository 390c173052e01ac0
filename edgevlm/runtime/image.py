"""A path, bytes or a data URL become RGB pixels, within limits checked before decoding."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
import struct
import urllib.parse
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgevlm.errors import ImageError
from edgevlm.files import human_bytes

MAX_PIXELS = 50_000_000
MAX_BYTES = 100_000_000
_FORMATS = "JPEG, PNG, WebP, GIF, TIFF or BMP"
# What decodes without asking another program and has no place for one: no EPS, PDF or the like.
_DECODERS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
# Brands of ISO media files (bytes 8 to 12) -> Pillow's name of the format. `mif1` and `msf1` say
# no more than "pictures", and what cameras put in there is HEIC.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"), "HEIF"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
}
_WHITE = 255
# Decoders of broken files raise whatever their parser stumbled over.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)


def load_image(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> NDArray[np.uint8]:
    """Decode one image: upright by its EXIF orientation, transparent parts on white, first frame.

    Args:
        source: a path, the bytes of a file, or a `data:` URL. JPEG, PNG, WebP, GIF, TIFF, BMP and
            PPM; AVIF where Pillow was built with it; HEIC where pillow-heif is installed.
        max_pixels: width x height allowed; checked in the header, before a pixel is decoded.
        max_bytes: size of the encoded file allowed.

    Returns:
        RGB uint8 [height, width, 3].

    Raises:
        ImageError: missing, empty, truncated, no image, or beyond a limit.
    """
    name, data = _read(source, max_bytes)
    if not data:
        raise ImageError(f"{name} is empty", hint=f"name an image file ({_FORMATS})")
    if len(data) > max_bytes:
        raise _too_many_bytes(name, len(data), max_bytes)
    return _decode(name, data, max_pixels)


def _read(source: Path | str | bytes, max_bytes: int) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the image", source
    if isinstance(source, str) and source.startswith("data:"):
        return "the data URL", _data_url(source, max_bytes)
    path = Path(source)
    name = f"image `{path}`"
    try:
        # Without O_NONBLOCK the open of a named pipe would wait for a writer, perhaps for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{name} is no file", hint=f"name an image file ({_FORMATS})")
            if status.st_size > max_bytes:
                raise _too_many_bytes(name, status.st_size, max_bytes)
            return name, file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ImageError(f"there is no {name}", hint="check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot read {name}: {reason}", hint="name a readable file") from None


def _data_url(url: str, max_bytes: int) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError("the data URL has no comma", hint="use data:image/png;base64,...")
    if len(payload) > max_bytes * 4 // 3 + 4:
        raise _too_many_bytes("the data URL", len(payload), max_bytes)
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    try:
        # `base64 FILE` breaks its lines.
        text = "".join(urllib.parse.unquote(payload).split())
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "the data URL is not valid base64", hint="use data:image/png;base64,..."
        ) from None


def _too_many_bytes(name: str, n_bytes: int, max_bytes: int) -> ImageError:
    return ImageError(
        f"{name} has {human_bytes(n_bytes)}, the limit is {human_bytes(max_bytes)}",
        hint="save it smaller",
    )


def _decode(name: str, data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of a decompression bomb from a limit of its own; ours is checked below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_decoders(name, data)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ImageError(
                        f"{name} is {width}x{height}, {width * height:,} pixels; the limit is"
                        f" {max_pixels:,}",
                        hint="make it smaller, or raise --max-pixels",
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                return np.array(_to_rgb(upright), dtype=np.uint8)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is no image that can be read", hint=f"use {_FORMATS}") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} is far larger than {max_pixels:,} pixels",
            hint="make it smaller, or raise --max-pixels",
        ) from None
    except MemoryError:
        raise ImageError(f"there is no memory to decode {name}", hint="make it smaller") from None
    except _DECODER_ERRORS as error:
        raise ImageError(
            f"{name} is damaged or truncated: {error}", hint="save or download it again"
        ) from None


def _decoders(name: str, data: bytes) -> tuple[str, ...]:
    """Return the formats to try, by Pillow's names.

    Raises:
        ImageError: the format is known, its decoder is not installed.
    """
    kind = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if kind is None:
        return _DECODERS
    if kind == "HEIF":
        with suppress(ImportError):
            import_module("pillow_heif").register_heif_opener()
    Image.init()
    if kind in Image.OPEN:
        return (kind,)
    shown, package = ("HEIC", "pillow-heif") if kind == "HEIF" else ("AVIF", "pillow>=11.3")
    raise ImageError(
        f"{name} is {shown}, and no decoder for it is installed",
        hint=f"install one with `pip install '{package}'`, or save the image as JPEG or PNG",
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # Pillow clips these to 255, which turns a 16-bit picture white: keep the high byte.
        values = np.asarray(image)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        scale = _WHITE if values.max(initial=0.0) <= 1.0 else 1
        return Image.fromarray((values * scale).clip(0, _WHITE).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (_WHITE,) * 4)
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
