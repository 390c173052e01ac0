"""Images stretched to whole visual tokens, as Gemma 4 is trained on them.

Every image is scaled, up or down, to the largest size whose tokens are within a budget, its sides
rounded down to multiples of a token's (transformers image_processing_pil_gemma4.py,
`get_aspect_ratio_preserving_size`). libmtmd scales only images beyond its limits, and puts black
bars beside them (tools/mtmd/mtmd-image.cpp, `mtmd_image_preprocessor_dyn_size`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.runtime.stretch_canvas import Pixels, stretched


@dataclass(frozen=True, kw_only=True)
class Gemma4Canvas:
    """The sizes that images are stretched to.

    Attributes:
        cell: side of a visual token in pixels.
        max_tokens: visual tokens of an image at most.
    """

    cell: int
    max_tokens: int

    @property
    def least(self) -> int:
        """Pixels that an image is made to have, about: all but what its sides are rounded by."""
        return self.max_tokens * self.cell**2

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """Return the size that an image is stretched to."""
        cell = self.cell
        factor = math.sqrt(self.least / (width * height))
        high, wide = (int(factor * side // cell) * cell for side in (height, width))
        if high == 0:
            return min(width // height, self.max_tokens) * cell, cell
        if wide == 0:
            return cell, min(height // width, self.max_tokens) * cell
        return wide, high

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return the stretched image alone.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        height, width, _ = pixels.shape
        return [stretched(pixels, self.laid_out(width, height))]
