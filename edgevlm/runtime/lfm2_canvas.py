"""Images scaled and cut as LFM2-VL is trained on them.

An image of at most twice the most visual tokens is scaled to a number of them, a larger one is
stretched to whole tiles, behind which stands the image itself, small. Facts: transformers
image_processing_lfm2_vl.py (`smart_resize`, `resize_and_split`). libmtmd puts black bars beside an
image that it cuts, and rounds half a token up, not to the even number (tools/mtmd/mtmd-image.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
# Of a side to the other: of a longer image even the small one has more tokens than it should.
MAX_ASPECT = 256
# Between two shapes, of one: far above what single precision rounds.
_CLEAR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Lfm2Canvas:
    """The sizes that images are scaled to; the usual ones are those that llama.cpp has too.

    Attributes:
        patch: side of a patch in pixels.
        cell: side of a visual token in pixels.
        min_tokens: of an image that is not cut.
        max_tokens: of an image that is not cut.
        tolerance: times the most tokens from which on an image is cut.
        tile: side of a tile in pixels.
        min_tiles: of an image that is cut.
        max_tiles: of an image that is cut.
        cuts: whether images are cut at all.
        has_thumbnail: whether the image itself stands behind its tiles.
    """

    patch: int
    cell: int
    min_tokens: int = 64
    max_tokens: int = 256
    tolerance: float = 2.0
    tile: int = 512
    min_tiles: int = 2
    max_tiles: int = 10
    cuts: bool = True
    has_thumbnail: bool = True

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return columns and rows of an image, (1, 1) of one that is not cut.

        The shape is the nearest one; of equal shapes it is that of more tiles, as long as the image
        has more than half their pixels.
        """
        if not self._is_cut(width, height):
            return 1, 1
        best, best_gap = (1, 1), math.inf
        for columns, rows in self._grids():
            gap = abs(width / height - columns / rows)
            fills = width * height > 0.5 * (self.tile**2 * columns * rows)
            if gap < best_gap or (gap == best_gap and fills):
                best, best_gap = (columns, rows), gap
        return best

    def whole_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of an image that is not cut, or of the small one."""
        cell, area = self.cell, self.cell**2
        sides = [max(cell, _rounded(side, cell)) for side in (width, height)]
        n_pixels = sides[0] * sides[1]
        if n_pixels > self.max_tokens * area:
            shrink = math.sqrt(width * height / (self.max_tokens * area))
            sides = [max(cell, math.floor(side / shrink / cell) * cell) for side in (width, height)]
        elif n_pixels < self.min_tokens * area:
            grow = math.sqrt(self.min_tokens * area / (width * height))
            sides = [math.ceil(side * grow / cell) * cell for side in (width, height)]
        return sides[0], sides[1]

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that libmtmd is told: it gives an image just the tokens of its encodes.

        libmtmd compares shapes in single precision. Where two of them are equally near, a size
        that is one pixel off is told, for which it has the same grid and the same small image.
        """
        grid, whole = self.grid(width, height), self.whole_size(width, height)
        if grid == (1, 1):
            return whole
        for more in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            told = width + more[0], height + more[1]
            if (self.grid(*told), self.whole_size(*told)) == (grid, whole) and self._is_clear(
                *told
            ):
                return told
        return width, height

    def _is_clear(self, width: int, height: int) -> bool:
        """Return whether no other shape is as near as the one that is taken."""
        ratio = width / height
        shapes = sorted(
            {columns / rows for columns, rows in self._grids()}, key=lambda x: abs(x - ratio)
        )
        nearest, *others = (abs(shape - ratio) for shape in shapes)
        return all(other - nearest > _CLEAR * ratio for other in others[:1])

    def cut(self, pixels: Pixels) -> Sequence[Pixels]:
        """Return what is encoded of an image: the tiles row by row, and the image behind them.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        columns, rows = self.grid(width, height)
        whole = _resized(pixels, *self.whole_size(width, height))
        if (columns, rows) == (1, 1):
            return [whole]
        side = self.tile
        stretched = _resized(pixels, columns * side, rows * side)
        tiles = [
            stretched[y : y + side, x : x + side]
            for y in range(0, rows * side, side)
            for x in range(0, columns * side, side)
        ]
        return [*tiles, whole] if self.has_thumbnail else tiles

    def _is_cut(self, width: int, height: int) -> bool:
        sides = [max(self.patch, _rounded(side, self.cell)) for side in (width, height)]
        return self.cuts and sides[0] * sides[1] > self.max_tokens * self.cell**2 * self.tolerance

    def _grids(self) -> list[tuple[int, int]]:
        numbers = range(1, self.max_tiles + 1)
        grids = [
            (columns, rows)
            for columns in numbers
            for rows in numbers
            if self.min_tiles <= columns * rows <= self.max_tiles
        ]
        return sorted(grids, key=lambda grid: grid[0] * grid[1])


def _rounded(side: int, cell: int) -> int:
    return round(side / cell) * cell


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)
