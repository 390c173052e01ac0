"""Images as LLaVA-NeXT is trained on them: the whole, then tiles whose rows are joined again.

LLaVA-OneVision is the same with an end: a picture of more tiles is shrunk to about as many.

First stands the whole image, stretched to a tile. The same image, scaled into the grid that keeps
the most of its pixels with black beside it, is cut into tiles; what these are encoded to is laid
out as one picture, rid of the black as far as it fills whole rows or columns, and each row ends
with a vector of its own. Facts: transformers image_processing_pil_llava_next.py and
modeling_llava_next.py (`pack_image_features`, `unpad_image`), `select_best_resolution`;
modeling_llava_onevision.py (`pack_image_features`) and torch's bilinear `interpolate`. libmtmd
stretches the image to the grid, and hands the tiles over one after the other, without the vector
(tools/mtmd/mtmd-image.cpp, `mtmd_image_preprocessor_llava_uhd`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtime.slice_canvas import Pixels, resized

Rows = NDArray[np.float32]
# A side is shrunk by a tenth at least, or left.
_LEAST_SHRUNK = 1.1


@dataclass(frozen=True, kw_only=True)
class AnyresCanvas:
    """The sizes that images are scaled into.

    Attributes:
        side: of a tile, in pixels.
        cells: visual tokens that a side of a tile becomes.
        grids: columns and rows of tiles; of equally good ones the first is taken.
        newline: float32 values of the vector that ends a row.
        max_tiles: what the joined tiles are shrunk to where they are many more; 0: they are not.
    """

    side: int
    cells: int
    grids: tuple[tuple[int, int], ...]
    newline: bytes
    max_tiles: int = 0

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return columns and rows of tiles: the most pixels kept, then the least left black."""
        best, best_kept, best_waste = self.grids[0], 0, math.inf
        for columns, rows in self.grids:
            wide, high = columns * self.side, rows * self.side
            scale = min(wide / width, high / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            waste = wide * high - kept
            if kept > best_kept or (kept == best_kept and waste < best_waste):
                best, best_kept, best_waste = (columns, rows), kept, waste
        return best

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return what is encoded of an image: the whole, then its tiles row by row.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        columns, rows = self.grid(width, height)
        side = self.side
        padded = self._padded(pixels, columns * side, rows * side)
        return [
            resized(pixels, side, side),
            *(
                padded[y : y + side, x : x + side]
                for y in range(0, rows * side, side)
                for x in range(0, columns * side, side)
            ),
        ]

    def _padded(self, pixels: Pixels, wide: int, high: int) -> Pixels:
        """Return an image scaled into a size, its proportions kept, black around it."""
        height, width, _ = pixels.shape
        by_width, by_height = wide / width, high / height
        if by_width < by_height:
            wanted = wide, min(math.ceil(height * by_width), high)
        else:
            wanted = min(math.ceil(width * by_height), wide), high
        left, top = (wide - wanted[0]) // 2, (high - wanted[1]) // 2
        padded = np.zeros((high, wide, 3), dtype=np.uint8)
        padded[top : top + wanted[1], left : left + wanted[0]] = resized(pixels, *wanted)
        return padded

    def n_tokens(self, width: int, height: int) -> int:
        """Return how many rows of embeddings an image becomes."""
        rows, columns = self._shrunk(*map(len, self._kept(width, height)))
        return self.cells**2 + rows * (columns + 1)

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        """Return rows and columns that remain of those kept."""
        if not self.max_tiles:
            return rows, columns
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.cells**2))
        if ratio <= _LEAST_SHRUNK:
            return rows, columns
        return max(1, int(rows // ratio)), max(1, int(columns // ratio))

    def _kept(self, width: int, height: int) -> tuple[range, range]:
        """Return which rows and columns of the joined tiles are not black throughout."""
        columns, rows = (count * self.cells for count in self.grid(width, height))
        if width / height > columns / rows:
            margin = (rows - int(round(height * (columns / width), 7))) // 2
            return range(margin, rows - margin), range(columns)
        margin = (columns - int(round(width * (rows / height), 7))) // 2
        return range(rows), range(margin, columns - margin)

    def joined(self, tiles: Sequence[Rows], width: int, height: int) -> Rows:
        """Return the rows of embeddings of an image.

        Args:
            tiles: [cells x cells, n_embd] float32 each: of what `cut` returns.
            width: of the image in pixels.
            height: of the image in pixels.
        """
        columns, rows = self.grid(width, height)
        n_embd = tiles[0].shape[1]
        blocks = np.stack(tiles[1:]).reshape(rows, columns, self.cells, self.cells, n_embd)
        picture = blocks.swapaxes(1, 2).reshape(rows * self.cells, columns * self.cells, n_embd)
        kept_rows, kept_columns = self._kept(width, height)
        kept = picture[kept_rows.start : kept_rows.stop, kept_columns.start : kept_columns.stop]
        for axis, n_left in enumerate(self._shrunk(*kept.shape[:2])):
            kept = _interpolated(kept, n_left, axis)
        newline = np.frombuffer(self.newline, dtype="<f4")
        ends = np.broadcast_to(newline, (len(kept), 1, n_embd))
        lines = np.concatenate([kept, ends], axis=1).reshape(-1, n_embd)
        return np.concatenate([tiles[0], lines], dtype=np.float32)


def _interpolated(picture: Rows, n_left: int, axis: int) -> Rows:
    """Return a picture with `n_left` rows or columns, each a mean of the two nearest its middle."""
    n_given = picture.shape[axis]
    if n_given == n_left:
        return picture
    middles = (np.arange(n_left, dtype=np.float32) + np.float32(0.5)) * np.float32(n_given / n_left)
    middles = np.maximum(middles - np.float32(0.5), 0)
    first = np.minimum(middles.astype(np.int64), n_given - 1)
    shape = [1] * picture.ndim
    shape[axis] = n_left
    share = (middles - first).astype(np.float32).reshape(shape)
    one = picture.take(first, axis)
    other = picture.take(np.minimum(first + 1, n_given - 1), axis)
    return np.asarray(one + (other - one) * share, dtype=np.float32)
