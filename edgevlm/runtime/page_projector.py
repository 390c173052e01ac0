"""A projector whose images are tiles, then the whole image: DeepSeek-OCR 2.

libmtmd cuts an image and makes a whole of it at once. Here both come from pictures of our own: of
one that is the grid of tiles, the tiles are encoded, of one that is the whole image already, the
whole. libmtmd's line feed behind an image is left out: the checkpoint's prompts write their own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.projector import BitmapPart, EncodedImage, ImageChunk, Projector, TextPart
from edgevlm.runtime.page_canvas import PageCanvas
from edgevlm.runtime.piecewise import Chunks, laid_out
from edgevlm.runtime.tiled_projector import joined_inputs

# Of the encodes that libmtmd cuts a picture into, the last is the whole.
_TILES, _WHOLE = slice(-1), slice(-1, None)


class PageProjector:
    """A projector that gets the tiles and the whole of an image from two pictures.

    Args:
        projector: encodes both.
        canvas: what images are cut from.
    """

    def __init__(self, projector: Projector, canvas: PageCanvas) -> None:
        self._projector = projector
        self._canvas = canvas

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> Chunks:
        """Lay out a prompt, as Projector does."""
        return laid_out(self._projector, parts, self._image, add_special=add_special)

    def _image(self, width: int, height: int) -> Chunks:
        wide, high = self._canvas.laid_out(width, height)
        chunks = self._projector.tokenize([BitmapPart(width=wide, height=high)])
        return [chunk for chunk in chunks if isinstance(chunk, ImageChunk)]

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """Turn one image, RGB uint8 [height, width, 3], into embeddings, the whole behind tiles.

        Raises:
            ImageError: libmtmd cannot take the image.
        """
        started = time.perf_counter()
        tiled, whole = self._canvas.cut_from(pixels), self._canvas.whole(pixels)
        cutting_ms = (time.perf_counter() - started) * 1e3
        encoded = [] if tiled is None else [self._projector.encode(tiled, chosen=_TILES)]
        encoded.append(self._projector.encode(whole, chosen=_WHOLE))
        return EncodedImage(
            tiles=tuple(rows for image in encoded for rows in image.tiles),
            preprocess_ms=cutting_ms + sum(image.preprocess_ms for image in encoded),
            encode_ms=sum(image.encode_ms for image in encoded),
            graph_input=joined_inputs([image.graph_input for image in encoded]),
        )
