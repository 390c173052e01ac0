"""A projector whose images are cut and laid out here: MiniCPM-V 4.6.

libmtmd has no layout for most of the sizes that the model was trained on. So the tokens around the
encodes are written here, as transformers' `MiniCPMV4_6Processor.replace_image_token` does, and each
piece of an image is handed to libmtmd as an image of its own, of which the first encode is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.projector import (
    BitmapPart,
    EncodedImage,
    ImageChunk,
    Projector,
    TextPart,
)
from edgevlm.runtime.any_canvas import AnyCanvas
from edgevlm.runtime.anyres_canvas import AnyresCanvas
from edgevlm.runtime.anyres_projector import AnyresProjector
from edgevlm.runtime.ended_canvas import EndedCanvas, EndedProjector
from edgevlm.runtime.page_canvas import PageCanvas
from edgevlm.runtime.page_projector import PageProjector
from edgevlm.runtime.piecewise import Chunks, laid_out
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.tiled_projector import ImageEncoder, TiledProjector, joined_inputs

_IMAGE, _SLICE, _ROW_END = ("<image>", "</image>"), ("<slice>", "</slice>"), "\n"


class SlicedProjector:
    """A projector that gets the pieces of an image one by one.

    Args:
        projector: encodes each piece.
        canvas: what images are cut from.
    """

    def __init__(self, projector: Projector, canvas: SliceCanvas) -> None:
        self._projector = projector
        self._canvas = canvas

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> Chunks:
        """Lay out a prompt, as Projector does."""
        return laid_out(self._projector, parts, self._image, add_special=add_special)

    def _image(self, width: int, height: int) -> Chunks:
        """Return the whole image between its tokens, then rows of slices between theirs."""
        found = self._piece(_IMAGE, self._canvas.whole_size(width, height))
        columns, rows = self._canvas.grid(width, height)
        if not columns:
            return found
        piece = self._piece(_SLICE, self._canvas.slice_size(width, height))
        for row in range(rows):
            found += self._token(_ROW_END) if row else []
            found += piece * columns
        return found

    def _piece(self, around: tuple[str, str], size: tuple[int, int]) -> Chunks:
        chunks = self._projector.tokenize([BitmapPart(width=size[0], height=size[1])])
        first = next(chunk for chunk in chunks if isinstance(chunk, ImageChunk))
        return [*self._token(around[0]), first, *self._token(around[1])]

    def _token(self, text: str) -> Chunks:
        return self._projector.tokenize([TextPart(text=text, parse_special=True)])

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """Turn one image, RGB uint8 [height, width, 3], into embeddings, piece by piece.

        Raises:
            ImageError: libmtmd cannot take the image.
        """
        started = time.perf_counter()
        pieces = self._canvas.cut(pixels)
        cutting_ms = (time.perf_counter() - started) * 1e3
        encoded = [self._projector.encode(piece, chosen=slice(1)) for piece in pieces]
        return EncodedImage(
            tiles=tuple(rows for image in encoded for rows in image.tiles),
            preprocess_ms=cutting_ms + sum(image.preprocess_ms for image in encoded),
            encode_ms=sum(image.encode_ms for image in encoded),
            graph_input=joined_inputs([image.graph_input for image in encoded]),
        )


def with_canvas(projector: Projector | None, canvas: AnyCanvas | None) -> ImageEncoder | None:
    """Return a projector that gets pieces of images where its images want to be cut."""
    if projector is None or canvas is None:
        return projector
    if isinstance(canvas, SliceCanvas):
        return SlicedProjector(projector, canvas)
    if isinstance(canvas, AnyresCanvas):
        return AnyresProjector(projector, canvas)
    if isinstance(canvas, PageCanvas):
        return PageProjector(projector, canvas)
    tiled = TiledProjector(projector, canvas)
    if isinstance(canvas, EndedCanvas) and canvas.last_row:
        return EndedProjector(tiled, canvas.last_row)
    return tiled
