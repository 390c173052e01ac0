"""Images stretched to whole tiles and cut, as InternVL is trained on them.

The grid is the one whose shape is nearest to the image's; behind its tiles stands the whole image,
unless there is one tile alone (transformers image_processing_got_ocr2.py). libmtmd would choose a
grid by the pixels that it keeps, put black bars beside the image, and send two encodes for one tile
(tools/mtmd/mtmd-image.cpp, `select_best_resolution`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
# Of an image: far above what models publish, and what libmtmd takes without being told.
MAX_TILES, USUAL_TILES = 144, 12


class Canvas(Protocol):
    """How a family's images are cut before libmtmd gets them."""

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that libmtmd is told: one with just the tokens of what is encoded."""
        ...

    def cut(self, pixels: Pixels) -> Sequence[Pixels]:
        """Return what is encoded of an image, RGB uint8 [height, width, 3], in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class TileCanvas:
    """The sizes that images are stretched to.

    Attributes:
        side: of a tile, in pixels.
        max_tiles: of an image.
        min_tiles: of an image that is cut.
    """

    side: int
    max_tiles: int
    min_tiles: int = 1

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return columns and rows of an image: the nearest shape, of equal ones the most tiles.

        More tiles are taken as long as the image has more than half their pixels.
        """
        best, best_gap = (1, 1), math.inf
        for columns, rows in self._grids():
            gap = abs(width / height - columns / rows)
            fills = 2 * width * height > columns * rows * self.side**2
            if gap < best_gap or (gap == best_gap and fills):
                best, best_gap = (columns, rows), gap
        return best

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """See Canvas: the size of the grid, which libmtmd cuts into just these tiles."""
        columns, rows = self.grid(width, height)
        return columns * self.side, rows * self.side

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return the tiles row by row, and the whole image behind them.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        columns, rows = self.grid(pixels.shape[1], pixels.shape[0])
        side = self.side
        stretched = self._resized(pixels, columns * side, rows * side)
        tiles = [
            stretched[y : y + side, x : x + side]
            for y in range(0, rows * side, side)
            for x in range(0, columns * side, side)
        ]
        return tiles if len(tiles) == 1 else [*tiles, self._resized(pixels, side, side)]

    def _resized(self, pixels: Pixels, width: int, height: int) -> Pixels:
        if pixels.shape[:2] == (height, width):
            return pixels
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def _grids(self) -> list[tuple[int, int]]:
        numbers = range(1, self.max_tiles + 1)
        grids = [
            (columns, rows)
            for columns in numbers
            for rows in numbers
            if self.min_tiles <= columns * rows <= self.max_tiles
        ]
        return sorted(grids, key=lambda grid: grid[0] * grid[1])
