"""A projector whose images are cut here, because libmtmd cuts them otherwise than the model's own.

libmtmd still lays the prompt out, of a size for which it counts just the tiles that are cut here.
Encoded are tiles of our own, each of them an image that libmtmd leaves as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.graph_input import GraphInput
from edgevlm.native.projector import BitmapPart, EncodedImage, ImageChunk, TextChunk, TextPart
from edgevlm.runtime.tile_canvas import Canvas


class ImageEncoder(Protocol):
    """What lays out images and encodes them: a projector, or one that cuts them first."""

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        """See Projector."""
        ...

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """See Projector."""
        ...


class TiledProjector:
    """A projector that gets whole tiles.

    Args:
        projector: encodes each tile.
        canvas: what images are cut from.
    """

    def __init__(self, projector: ImageEncoder, canvas: Canvas) -> None:
        self._projector = projector
        self._canvas = canvas

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        """Lay out a prompt, as Projector does."""
        stretched = [
            self._stretched(part) if isinstance(part, BitmapPart) else part for part in parts
        ]
        return self._projector.tokenize(stretched, add_special=add_special)

    def _stretched(self, part: BitmapPart) -> BitmapPart:
        width, height = self._canvas.laid_out(part.width, part.height)
        return replace(part, width=width, height=height, pixels=None)

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """Turn one image, RGB uint8 [height, width, 3], into embeddings, tile by tile.

        Raises:
            ImageError: libmtmd cannot take the image.
        """
        started = time.perf_counter()
        tiles = self._canvas.cut(pixels)
        cutting_ms = (time.perf_counter() - started) * 1e3
        encoded = [self._projector.encode(tile) for tile in tiles]
        return EncodedImage(
            tiles=tuple(rows for image in encoded for rows in image.tiles),
            preprocess_ms=cutting_ms + sum(image.preprocess_ms for image in encoded),
            encode_ms=sum(image.encode_ms for image in encoded),
            graph_input=joined_inputs([image.graph_input for image in encoded]),
        )


def joined_inputs(inputs: Sequence[GraphInput | None]) -> GraphInput | None:
    """Return what the vision tower was given, piece by piece; None where nobody looked."""
    seen = [one for one in inputs if one is not None]
    if not seen:
        return None
    return GraphInput(
        tiles=tuple(tile for one in seen for tile in one.tiles),
        not_seen=next((one.not_seen for one in seen if one.not_seen), ""),
    )
