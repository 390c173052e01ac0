"""What stands in the KV cache, and how much of the next prompt it spares.

A conversation's next prompt begins as the one before did. The KV cache is kept as a list of items
(a token, or one encode of an image, known by its pixels' hash): the longest common beginning stays,
the rest is removed and read anew. All tokens of an M-RoPE image share positions, so that it stays
whole or goes whole; an image that stays is not encoded again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgevlm.native.projector import EncodedImage, ImageChunk, TextChunk
from edgevlm.native.text_context import TextContext
from edgevlm.runtime.embedding_cache import EmbeddingCache, Embeddings
from edgevlm.runtime.frame import Frame
from edgevlm.runtime.layout import Layout, Pixels
from edgevlm.runtime.tiled_projector import ImageEncoder


@dataclass(frozen=True, kw_only=True)
class HeldImage:
    """One encode of an image in the KV cache.

    Attributes:
        digest: of the image's pixels and size.
        tile: which of the image's encodes.
        n_tokens: cells that it takes.
        n_positions: positions that it takes; fewer, with M-RoPE.
    """

    digest: bytes
    tile: int
    n_tokens: int
    n_positions: int


Item = int | HeldImage


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """What it took to bring a prompt into the context.

    Attributes:
        n_reused_tokens: that were there.
        preprocess_ms: resizing and normalising images.
        image_encode_ms: image by image, 0 for those that were there.
        prefill_ms: through the text model.
        is_complete: false when `should_end` said so before the end; no logits then.
    """

    n_reused_tokens: int
    preprocess_ms: float
    image_encode_ms: tuple[float, ...]
    prefill_ms: float
    is_complete: bool


class KVCache:
    """A text model's context with a memory of what it holds.

    Attributes:
        context: the context.
        held: what stands in it, in order.
        embeddings: of images that were encoded.
    """

    def __init__(self, context: TextContext) -> None:
        self.context = context
        self.held: list[Item] = []
        self.embeddings = EmbeddingCache()

    @property
    def n_used(self) -> int:
        """Cells in use."""
        return self.context.n_used

    def prefill(
        self,
        layout: Layout,
        projector: Callable[[], ImageEncoder],
        *,
        reuse: bool = True,
        known: Embeddings | None = None,
        should_end: Callable[[], bool] = lambda: False,
    ) -> Prefilled:
        """Bring a prompt into the context; the logits of its last position stay.

        Args:
            layout: what to read.
            projector: called when there is something to encode.
            reuse: whether what is there may stay, and what was encoded be used again; false for
                the same numbers at every run.
            known: embeddings to use, and to put those there that are missing; None: the cache's own
                where there is reuse, and none where there is not.
            should_end: asked before each batch and each image.
        """
        digests = [pixels_digest(pixels) for pixels in layout.images]
        items = list(_items(layout, digests))
        n_kept = 0
        if reuse:
            n_kept = self._keep(items)
        else:
            self.clear()
        n_reused_tokens = self.context.n_used
        first = _first_image(layout, items, n_kept)
        if known is None:
            # What is compared or measured encodes anew.
            known = self.embeddings if reuse else EmbeddingCache()
        needed: dict[bytes, EncodedImage] = {}
        encoded: dict[int, EncodedImage] = {}
        for index in range(first, len(layout.images)):
            if should_end():
                break
            digest = digests[index]
            image = needed.get(digest) or known.get(digest)
            if image is None:
                image = encoded[index] = projector().encode(layout.images[index])
                known.put(digest, image)
            needed[digest] = image
        started = time.perf_counter()
        is_complete = self._read(layout, items, n_kept, needed, should_end)
        self.context.synchronize()
        return Prefilled(
            n_reused_tokens=n_reused_tokens,
            preprocess_ms=sum(image.preprocess_ms for image in encoded.values()),
            image_encode_ms=tuple(
                encoded[index].encode_ms if index in encoded else 0.0
                for index in range(len(layout.images))
            ),
            prefill_ms=(time.perf_counter() - started) * 1e3,
            is_complete=is_complete,
        )

    def append(self, tokens: Sequence[int], *, n_logits: int) -> None:
        """Read tokens; the last `n_logits` positions keep their logits."""
        with self._changing():
            self.context.decode_tokens(tokens, n_logits=n_logits)
        self.held += tokens

    def read_again(self, n_tokens: int) -> bool:
        """Forget the last tokens and read them in one batch, for who looks at graphs.

        Args:
            n_tokens: how many; none of them of an image.

        Returns:
            False where this memory cannot forget its end alone: then it is empty.
        """
        n_kept = len(self.held) - n_tokens
        tokens = [item for item in self.held[n_kept:] if isinstance(item, int)]
        if not self.rewind(n_kept):
            return False
        self.append(tokens, n_logits=1)
        return True

    def rewind(self, n_items: int) -> bool:
        """Forget all but the first items.

        Returns:
            False where this memory cannot forget its end alone: then it is empty.
        """
        kept = self.held[:n_items]
        if len(kept) < len(self.held):
            self.held = []
            if not self.context.keep(n_used=_n_tokens(kept), position=_n_positions(kept)):
                return False
            self.held = kept
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.held = []
        self.context.clear()

    def _keep(self, items: Sequence[Item]) -> int:
        """Keep the longest beginning that `items` share, and forget the rest; return its length."""
        # The last token is always read again: its logits are what the answer begins with.
        n_kept = n_common(self.held, items[:-1])
        if n_kept == 0:
            self.clear()
            return 0
        return n_kept if self.rewind(n_kept) else 0

    def _read(
        self,
        layout: Layout,
        items: Sequence[Item],
        n_kept: int,
        encoded: dict[bytes, EncodedImage],
        should_end: Callable[[], bool],
    ) -> bool:
        at = 0
        for chunk in layout.chunks:
            start, at = at, at + (len(chunk.tokens) if isinstance(chunk, TextChunk) else 1)
            if at <= n_kept:
                continue
            if isinstance(chunk, TextChunk):
                is_last = at == len(items)
                tokens = chunk.tokens[max(0, n_kept - start) :]
                if not self._read_tokens(tokens, is_last, should_end):
                    return False
                continue
            item = items[start]
            if should_end() or not isinstance(item, HeldImage):
                return False
            if item.digest not in encoded:  # ended between two images
                return False
            self._read_image(chunk, item, encoded[item.digest])
        return True

    def _read_tokens(
        self, tokens: Sequence[int], is_last: bool, should_end: Callable[[], bool]
    ) -> bool:
        step = self.context.n_batch
        for start in range(0, len(tokens), step):
            if should_end():
                return False
            part = tokens[start : start + step]
            self.append(part, n_logits=int(is_last and start + step >= len(tokens)))
        return True

    def _read_image(self, chunk: ImageChunk, item: HeldImage, image: EncodedImage) -> None:
        frame = chunk if isinstance(chunk, Frame) else None
        rows = frame.rows(image.tiles) if frame else image.tiles[item.tile]
        if len(rows) != chunk.n_tokens:
            raise RuntimeError("libmtmd counted other visual tokens than it encoded")
        with self._changing():
            self.context.decode_embeddings(
                rows,
                chunk.positions_at(self.context.position),
                n_positions_used=chunk.n_positions_used,
                causal=chunk.causal,
                places=frame.places_at(self.context.position) if frame else None,
            )
        self.held.append(item)

    @contextmanager
    def _changing(self) -> Generator[None]:
        """Forget everything when a decode fails midway: nobody knows what the cache holds then."""
        try:
            yield
        except BaseException:
            self.clear()
            raise


def _items(layout: Layout, digests: Sequence[bytes]) -> Iterator[Item]:
    owners = [
        (index, tile) for index, n_tiles in enumerate(layout.n_tiles) for tile in range(n_tiles)
    ]
    n_images = sum(isinstance(chunk, ImageChunk) for chunk in layout.chunks)
    if len(owners) != n_images:
        raise RuntimeError("libmtmd laid out other images than it was given")
    following = iter(owners)
    for chunk in layout.chunks:
        if isinstance(chunk, TextChunk):
            yield from chunk.tokens
            continue
        index, tile = next(following)
        yield HeldImage(
            digest=digests[index],
            tile=tile,
            n_tokens=chunk.n_tokens,
            n_positions=chunk.n_positions_used,
        )


def pixels_digest(pixels: Pixels) -> bytes:
    """Return what an image is known by: a hash of its pixels and size, 16 bytes."""
    state = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(pixels).data)
    return state.digest()


def n_common(left: Sequence[Item], right: Sequence[Item]) -> int:
    """Return how many items two beginnings share."""
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return number
    return min(len(left), len(right))


def _n_tokens(items: Sequence[Item]) -> int:
    return sum(1 if isinstance(item, int) else item.n_tokens for item in items)


def _n_positions(items: Sequence[Item]) -> int:
    return sum(1 if isinstance(item, int) else item.n_positions for item in items)


def _first_image(layout: Layout, items: Sequence[Item], n_kept: int) -> int:
    """Return the first image of which an encode is missing."""
    n_there = sum(isinstance(item, HeldImage) for item in items[:n_kept])
    for index, n_tiles in enumerate(layout.n_tiles):
        n_there -= n_tiles
        if n_there < 0:
            return index
    return len(layout.images)
