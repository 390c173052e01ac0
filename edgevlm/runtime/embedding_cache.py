"""Encoded images of a conversation, kept while they are talked about.

The KV cache spares an image that stays where it stood. One that moves (turns before it were left
out), or whose memory cannot forget its end (hybrid models), is read again, but need not be encoded
again: its embeddings do not depend on its place.
"""

from __future__ import annotations

from typing import Protocol

from edgevlm.native.projector import EncodedImage

MAX_BYTES = 64 << 20


class Embeddings(Protocol):
    """Encoded images by the digest of their pixels."""

    def get(self, digest: bytes) -> EncodedImage | None:
        """Return an image's embeddings, None when they are not there."""
        ...

    def put(self, digest: bytes, image: EncodedImage) -> None:
        """Keep an image's embeddings."""
        ...


class EmbeddingCache:
    """Images by digest, the one used last kept longest.

    Args:
        max_bytes: of all embeddings together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._images: dict[bytes, EncodedImage] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes in use."""
        return sum(map(_n_bytes, self._images.values()))

    def get(self, digest: bytes) -> EncodedImage | None:
        """Return an image's embeddings, None when they are not there."""
        image = self._images.pop(digest, None)
        if image is not None:
            self._images[digest] = image  # last in order: used last
        return image

    def put(self, digest: bytes, image: EncodedImage) -> None:
        """Keep an image's embeddings, at the expense of those used longest ago."""
        self._images[digest] = image
        while self.n_bytes > self._max_bytes:
            del self._images[next(iter(self._images))]

    def clear(self) -> None:
        """Forget everything."""
        self._images.clear()


def _n_bytes(image: EncodedImage) -> int:
    return sum(tile.nbytes for tile in image.tiles)
