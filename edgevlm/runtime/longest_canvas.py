"""Images scaled until the longer side is what LightOnOCR was trained with, in whole visual tokens.

transformers shrinks an image so that neither side is longer, rounds down, and stretches both sides
up to whole tokens (image_processing_pil_pixtral.py, `get_resize_output_image_size`). libmtmd scales
small images up to the same length, which nothing but an image of that length escapes
(tools/mtmd/mtmd-image.cpp, `mtmd_image_preprocessor_longest_edge`), and puts bars beside an image
instead of stretching it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.runtime.stretch_canvas import Pixels, stretched


@dataclass(frozen=True, kw_only=True)
class LongestCanvas:
    """The sizes that images are scaled to.

    Attributes:
        cell: side of a visual token in pixels.
        longest: the longer side of every image in pixels.
    """

    cell: int
    longest: int

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that an image is stretched to, which libmtmd leaves as it is."""
        ratio = max(width, height) / self.longest

        def side(length: int) -> int:
            return max(1, math.ceil(math.floor(length / ratio) / self.cell)) * self.cell

        return side(width), side(height)

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return the stretched image alone.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        return [stretched(pixels, self.laid_out(width, height))]
