"""Images cut into slices as MiniCPM-V 4.6 is trained on them.

First stands the whole image, scaled to about the pixels of a slice; a larger image has slices
behind it, of its own shape as nearly as a grid allows. Facts: transformers
image_processing_pil_minicpmv4_6.py (`get_sliced_grid`, `find_best_resize`, `get_refine_size`).
libmtmd makes a square of any small image, cuts a long one of few pixels, and puts black bars
beside what it cuts (tools/mtmd/mtmd-image.cpp).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.runtime.frame import Markers

Pixels = NDArray[np.uint8]
# Of a side to the other: of a longer image the whole has no pixels left across.
MAX_ASPECT = 64
_MAX_SLICES = 9


@dataclass(frozen=True, kw_only=True)
class SliceCanvas:
    """The sizes that images are scaled to.

    Attributes:
        side: of a square slice in pixels.
        cell: side of a visual token in pixels.
        markers: tokens that have places on an image's canvas, as its visual ones; None: none have.
    """

    side: int
    cell: int
    markers: Markers | None = None

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return columns and rows of slices, (0, 0) of an image that is not cut.

        Of as many slices as the image has pixels for, one less and one more, the grid is taken
        whose shape is nearest; of equally near ones that of more rows.
        """
        wanted = min(math.ceil(width * height / self.side**2), _MAX_SLICES)
        if wanted <= 1:
            return 0, 0
        best, best_gap = (1, 1), math.inf
        for n_slices in (wanted - 1, wanted, wanted + 1):
            for rows in range(1, n_slices + 1):
                if n_slices in (1, _MAX_SLICES + 1) or n_slices % rows:
                    continue
                columns = n_slices // rows
                gap = abs(math.log(width / height) - math.log(columns / rows))
                if gap < best_gap or (gap == best_gap and rows > best[1]):
                    best, best_gap = (columns, rows), gap
        return best

    def whole_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the whole image."""
        is_cut = self.grid(width, height) != (0, 0)
        if is_cut and width * height <= self.side**2:
            return self._divided(width, height)
        return self._scaled(width, height)

    def slice_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of each slice of an image that is cut."""
        columns, rows = self.grid(width, height)
        return self._scaled(_divisible(width, columns) / columns, _divisible(height, rows) / rows)

    def token_grids(self, width: int, height: int) -> list[list[tuple[int, int]]]:
        """Return rows and columns of visual tokens: of the whole image, then of each slice.

        Of each those that it should have come first, then those that libmtmd may make of it.
        """
        columns, rows = self.grid(width, height)
        sizes = [self.whole_size(width, height)]
        if columns:
            sizes += [self.slice_size(width, height)] * (columns * rows)
        square = self.side, self.side
        return [
            [(high // self.cell, wide // self.cell) for wide, high in (size, again, square)]
            for size, again in ((size, self._scaled_again(*size)) for size in sizes)
        ]

    def _scaled_again(self, width: int, height: int) -> tuple[int, int]:
        """Return what libmtmd scales a piece to (`get_best_resize`), in its float32."""
        ratio = np.float32(width) / np.float32(height)
        high = int(np.float32(self.side) / np.sqrt(ratio))
        wide, high = (
            max(self.cell, math.floor(length / self.cell + 0.5) * self.cell)
            for length in (int(np.float32(high) * ratio), high)
        )
        return wide, high

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return what is encoded of an image: the whole, then its slices row by row.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        whole = resized(pixels, *self.whole_size(width, height))
        columns, rows = self.grid(width, height)
        if not columns:
            return [whole]
        wide, high = self.slice_size(width, height)
        large = resized(pixels, columns * wide, rows * high)
        return [
            whole,
            *(
                large[y : y + high, x : x + wide]
                for y in range(0, rows * high, high)
                for x in range(0, columns * wide, wide)
            ),
        ]

    def _scaled(self, width: float, height: float) -> tuple[int, int]:
        """Return a size of about a slice's pixels."""
        ratio = width / height
        high = int(self.side / math.sqrt(ratio))
        return self._divided(int(high * ratio), high)

    def _divided(self, width: int, height: int) -> tuple[int, int]:
        return _divisible(width, self.cell), _divisible(height, self.cell)


def _divisible(length: int, divisor: int) -> int:
    return max(round(length / divisor) * divisor, divisor)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return an image, RGB uint8 [height, width, 3], in another size; bicubic, by Pillow."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
