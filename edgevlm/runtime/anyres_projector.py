"""A projector whose tiles are joined here: LLaVA-NeXT.

libmtmd lays the prompt out with an image of a single tile in place of each, which is exchanged for
as many tokens as the joined image has. Each tile is handed to libmtmd as an image of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.projector import BitmapPart, EncodedImage, ImageChunk, TextChunk, TextPart
from edgevlm.runtime.anyres_canvas import AnyresCanvas
from edgevlm.runtime.tiled_projector import ImageEncoder, joined_inputs


class AnyresProjector:
    """A projector that gets tiles one by one, and joins what they become.

    Args:
        projector: encodes each tile.
        canvas: what images are cut from.
    """

    def __init__(self, projector: ImageEncoder, canvas: AnyresCanvas) -> None:
        self._projector = projector
        self._canvas = canvas

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        """Lay out a prompt, as Projector does."""
        sizes = [(part.width, part.height) for part in parts if isinstance(part, BitmapPart)]
        chunks = self._projector.tokenize(
            [self._tile(part) if isinstance(part, BitmapPart) else part for part in parts],
            add_special=add_special,
        )
        if sum(isinstance(chunk, ImageChunk) for chunk in chunks) != len(sizes):
            raise RuntimeError("libmtmd made more than one encode of a tile")
        following = iter(sizes)
        return [
            self._whole(chunk, *next(following)) if isinstance(chunk, ImageChunk) else chunk
            for chunk in chunks
        ]

    def _tile(self, part: BitmapPart) -> BitmapPart:
        return replace(part, width=self._canvas.side, height=self._canvas.side, pixels=None)

    def _whole(self, chunk: ImageChunk, width: int, height: int) -> ImageChunk:
        n_tokens = self._canvas.n_tokens(width, height)
        positions = np.tile(np.arange(n_tokens, dtype=np.int32), (len(chunk.positions), 1))
        return replace(chunk, n_tokens=n_tokens, n_positions_used=n_tokens, positions=positions)

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """Turn one image, RGB uint8 [height, width, 3], into embeddings, tile by tile.

        Raises:
            ImageError: libmtmd cannot take the image.
        """
        started = time.perf_counter()
        height, width, _ = pixels.shape
        tiles = self._canvas.cut(pixels)
        cutting_ms = (time.perf_counter() - started) * 1e3
        encoded = [self._projector.encode(tile) for tile in tiles]
        rows = [rows for image in encoded for rows in image.tiles]
        return EncodedImage(
            tiles=(self._canvas.joined(rows, width, height),),
            preprocess_ms=cutting_ms + sum(image.preprocess_ms for image in encoded),
            encode_ms=sum(image.encode_ms for image in encoded),
            graph_input=joined_inputs([image.graph_input for image in encoded]),
        )
