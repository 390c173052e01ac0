"""Images cut into tiles and shown whole behind them, as DeepSeek-OCR 2 is trained on them.

An image with a side above a tile's is stretched to the grid whose shape is nearest to its own; the
whole image, with grey beside it, stands behind the tiles, larger than one of them. Facts:
transformers image_processing_pil_deepseek_ocr2.py. libmtmd orders equal grids otherwise and scales
with a filter of its own (tools/mtmd/mtmd-image.cpp, `mtmd_image_preprocessor_deepseekocr`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtime.stretch_canvas import stretched
from edgevlm.runtime.tile_canvas import TileCanvas

Pixels = NDArray[np.uint8]
# Of a side to the other: of a longer image the whole has no pixels left across.
MAX_ASPECT = 2048
_GREY = 127


@dataclass(frozen=True, kw_only=True)
class PageCanvas:
    """The sizes that images are scaled to.

    Attributes:
        tiles: how an image is cut.
        side: of the square that the whole image stands in, in pixels.
    """

    tiles: TileCanvas
    side: int

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return columns and rows of tiles, (0, 0) of an image that is shown whole alone."""
        return self.tiles.grid(width, height) if max(width, height) > self.tiles.side else (0, 0)

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the grid, or one that libmtmd does not cut."""
        columns, rows = self.grid(width, height)
        return max(1, columns) * self.tiles.side, max(1, rows) * self.tiles.side

    def cut_from(self, pixels: Pixels) -> Pixels | None:
        """Return what libmtmd cuts into just the tiles of an image; None where it has none.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        if self.grid(width, height) == (0, 0):
            return None
        return stretched(pixels, self.laid_out(width, height))

    def whole(self, pixels: Pixels) -> Pixels:
        """Return the square with the whole image in its middle.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        scale = self.side / max(width, height)
        scaled = stretched(pixels, (round(width * scale), round(height * scale)))
        square = np.full((self.side, self.side, 3), _GREY, dtype=np.uint8)
        top, left = ((self.side - size) // 2 for size in scaled.shape[:2])
        square[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
        return square
