"""Images stretched to one square, as Gemma 3n is trained on them, and the token that ends each.

transformers scales every image to the same square, bilinear (image_processing_pil_siglip.py);
libmtmd keeps its proportions and puts black bars beside it (tools/mtmd/mtmd-image.cpp,
`mtmd_image_preprocessor_fixed_size`). `<end_of_image>` is an id of the tower's own vocabulary:
transformers makes its row as it makes those of an image (`Gemma3nModel.forward`), llama.cpp looks
it up in the text model's embedding, where nothing was ever trained. So it is read here as one more
row of the image; llama.cpp gives rows the embedding of every layer that transformers gives ids
beyond the text's own: that of id 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.native.projector import BitmapPart, EncodedImage, ImageChunk, TextChunk, TextPart
from edgevlm.runtime.tile_canvas import Pixels
from edgevlm.runtime.tiled_projector import ImageEncoder


@dataclass(frozen=True, kw_only=True)
class EndedCanvas:
    """The square that images are stretched to.

    Attributes:
        side: of it, in pixels.
        last_row: float32 values of what ends an image; b"": libmtmd ends it with a token.
    """

    side: int
    last_row: bytes = b""

    def laid_out(self, width: int, height: int) -> tuple[int, int]:
        """See Canvas."""
        return self.side, self.side

    def cut(self, pixels: Pixels) -> list[Pixels]:
        """Return the stretched image alone.

        Args:
            pixels: RGB uint8 [height, width, 3].
        """
        if pixels.shape[:2] == (self.side, self.side):
            return [pixels]
        size = self.side, self.side
        return [np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))]


class EndedProjector:
    """A projector that gives a row more of each image.

    Args:
        projector: encodes images.
        last_row: float32 values of that row.
    """

    def __init__(self, projector: ImageEncoder, last_row: bytes) -> None:
        self._projector = projector
        self._last_row = np.frombuffer(last_row, dtype="<f4")[None]

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        """Lay out a prompt, as Projector does."""
        chunks = self._projector.tokenize(parts, add_special=add_special)
        return [_longer(chunk) if isinstance(chunk, ImageChunk) else chunk for chunk in chunks]

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """Turn one image, RGB uint8 [height, width, 3], into embeddings.

        Raises:
            ImageError: libmtmd cannot take the image.
        """
        image = self._projector.encode(pixels)
        tiles = tuple(np.concatenate([rows, self._last_row]) for rows in image.tiles)
        return replace(image, tiles=tiles)


def _longer(chunk: ImageChunk) -> ImageChunk:
    last = chunk.positions[:, -1:] + np.int32(1)
    return replace(
        chunk,
        n_tokens=chunk.n_tokens + 1,
        n_positions_used=chunk.n_positions_used + 1,
        positions=np.concatenate([chunk.positions, last], axis=1),
    )
