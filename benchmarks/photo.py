"""One drawn "photo" of any size: what a camera's picture asks of a resize, without a camera.

Smooth shapes (sky, sun), sharp edges (hills, a house), strokes a pixel or two wide (signs of
made-up letters) and fine texture (grass, stripes of one pixel). Integers alone: the same bytes on
every machine. To look at it: `python benchmarks/photo.py out.png`.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.int64]
WIDTH, HEIGHT = 640, 488
INK, PAPER = (24, 28, 40), (246, 244, 236)


def photo(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return it as RGB uint8 [height, width, 3]; the scene grows with the size, strokes do not."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    noise = np.random.PCG64(640_488).random_raw(height * width).astype(np.int64) & 255
    picture = sky(x, y, width, height)
    draw_hills(picture, x, y, noise.reshape(height, width))
    draw_house(picture)
    draw_sign(picture, top=height // 12, left=width // 16)
    draw_stripes(picture)
    return np.clip(picture, 0, 255).astype(np.uint8)


def sky(x: Values, y: Values, width: int, height: int) -> Values:
    ramp = np.stack([90 + 80 * y // height, 140 + 60 * y // height, 230 - 50 * x // width], axis=-1)
    radius = height // 6
    distance = (x - 3 * width // 4) ** 2 + (y - height // 5) ** 2
    glow = np.maximum(0, 256 - 256 * distance // (4 * radius**2))[..., None]
    return ramp + glow * (np.array([255, 240, 190]) - ramp) // 256


def draw_hills(picture: Values, x: Values, y: Values, noise: Values) -> None:
    height, width = y.shape
    for center, top, color in ((width // 4, 50, (60, 110, 70)), (2 * width // 3, 58, (48, 92, 40))):
        edge = top * height // 100 + (x - center) ** 2 * height // (3 * width**2)
        grass = noise * (y - edge) // (3 * height) * 4
        inside = y >= edge
        picture[inside] = (np.array(color) + grass[..., None])[inside]


def draw_house(picture: Values) -> None:
    height, width, _ = picture.shape
    top, left, tall, wide = height * 52 // 100, width * 42 // 100, height // 3, width // 4
    picture[top : top + tall, left : left + wide] = (196, 92, 74)
    for row in range(3):
        for column in range(4):
            above = top + tall * (1 + 3 * row) // 10
            beside = left + wide * (1 + 3 * column) // 13
            picture[above : above + tall // 6, beside : beside + wide // 7] = (250, 236, 150)
            picture[above + tall // 12, beside : beside + wide // 7] = INK
    roof = tall // 3
    for step in range(roof):
        half = wide * (step + 1) // (2 * roof)
        middle = left + wide // 2
        picture[top - roof + step, middle - half : middle + half] = (84, 44, 52)


def draw_sign(picture: Values, *, top: int, left: int) -> None:
    """Letters of 5 x 7 in three sizes, each a pattern that no two share."""
    height, width, _ = picture.shape
    picture[top : top + height * 3 // 8, left : left + width // 3] = PAPER
    bits = np.random.PCG64(57).random_raw(4096).astype(np.int64) & 1
    letter = 0
    line = top + 6
    for scale in (1, 2, 4):
        for _ in range(3):
            pen = left + 6
            while pen + 6 * scale < left + width // 3 and line + 7 * scale < top + height * 3 // 8:
                shape = bits[letter % 100 * 35 :][:35].reshape(7, 5)
                ink = np.kron(shape, np.ones((scale, scale), dtype=np.int64)).astype(bool)
                picture[line : line + 7 * scale, pen : pen + 5 * scale][ink] = INK
                letter += 1
                pen += 6 * scale
            line += 9 * scale


def draw_stripes(picture: Values) -> None:
    """A fence: stripes of one pixel, then of two, then a chessboard of single pixels."""
    height, width, _ = picture.shape
    top, tall, wide = height * 7 // 8, height // 12, width // 8
    columns = np.arange(wide)
    for number, shade in enumerate((columns % 2, columns // 2 % 2)):
        left = width // 2 + number * wide
        picture[top : top + tall, left : left + wide] = 40 + 180 * shade[None, :, None]
    board = (columns[None, :] + np.arange(tall)[:, None]) % 2
    left = width // 2 + 2 * wide
    picture[top : top + tall, left : left + wide] = 40 + 180 * board[..., None]


if __name__ == "__main__":
    from PIL import Image

    Image.fromarray(photo()).save(sys.argv[1])
