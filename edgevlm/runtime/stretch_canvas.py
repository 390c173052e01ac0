"""Images stretched to whole visual tokens, as Qwen-VL, GLM, PaddleOCR-VL, HunYuanVL are trained.

Both sides are rounded to a multiple of a token's, and shrunk or grown until the image has a number
of pixels within bounds (`smart_resize` in transformers' image_processing_pil_ of glm4v,
paddleocr_vl, hunyuan_vl and qwen2_vl; the last two let no thin image grow beforehand). libmtmd
rounds in the same way; for most it puts black bars beside the image instead of stretching it, for
HunYuanVL it scales with another filter (tools/mtmd/mtmd-image.cpp,
`mtmd_image_preprocessor_dyn_size`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
# How many times longer than the other side transformers takes one at most.
MAX_ASPECT = 200


@dataclass(frozen=True, kw_only=True)
class StretchCanvas:
    """The sizes that images are stretched to.

    Attributes:
        cell: side of a visual token in pixels.
        least: pixels that an image has at least.
        most: pixels that an image has at most.
        rounds: how an image thinner than a token grows: to the nearest pixel, or down.
        widens: whether it grows before its pixels are counted at all.
    """

    cell: int
    least: int
    most: int
    rounds: bool = False
    widens: bool = True

    @property
    def max_tokens(self) -> int:
        """Visual tokens of the largest image."""
        return self.most // self.cell**2

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that an image is stretched to, which libmtmd leaves as it is."""
        cell = self.cell
        if self.rounds:
            width, height = _widened(width, height, cell)
        elif self.widens and min(width, height) < cell:
            scale = max(cell / height, cell / width)
            width, height = int(width * scale), int(height * scale)
        wide, high = round(width / cell) * cell, round(height / cell) * cell
        if wide * high > self.most:
            shrink = math.sqrt(width * height / self.most)
            wide = max(cell, math.floor(width / shrink / cell) * cell)
            high = max(cell, math.floor(height / shrink / cell) * cell)
        elif wide * high < self.least:
            growth = math.sqrt(self.least / (width * height))
            wide = math.ceil(width * growth / cell) * cell
            high = math.ceil(height * growth / cell) * cell
        return wide, high

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return the stretched image alone.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        return [stretched(pixels, self.laid_out(width, height))]


def stretched(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return an image at (width, height): itself where it has that size, else bicubic by Pillow.

    Args:
        pixels: RGB uint8 [height, width, 3].
        size: (width, height) in pixels.
    """
    height, width, _ = pixels.shape
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _widened(width: int, height: int, cell: int) -> tuple[int, int]:
    """Return the size of an image whose thinner side, if it is below a token's, is that."""
    if height < cell:
        width, height = round(width * cell / height), cell
    if width < cell:
        width, height = cell, round(height * cell / width)
    return width, height
