"""A prompt laid out piece by piece: texts by libmtmd, images by whoever cuts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from edgevlm.native.projector import BitmapPart, ImageChunk, Projector, TextChunk, TextPart

Chunks = list[TextChunk | ImageChunk]


def laid_out(
    projector: Projector,
    parts: Sequence[TextPart | BitmapPart],
    image: Callable[[int, int], Chunks],
    *,
    add_special: bool,
) -> Chunks:
    """Return the chunks of a prompt.

    Args:
        projector: tokenizes the texts.
        parts: texts and bitmaps in order.
        image: (width, height) -> what stands in the place of an image.
        add_special: add BOS where the vocabulary asks for it.
    """
    found: Chunks = []
    texts: list[TextPart] = []

    def close() -> None:
        is_first = add_special and not found
        if texts or is_first:
            found.extend(projector.tokenize(texts, add_special=is_first))
        texts.clear()

    for part in parts:
        if isinstance(part, TextPart):
            texts.append(part)
            continue
        close()
        found.extend(image(part.width, part.height))
    close()
    return _merged(found)


def _merged(chunks: Chunks) -> Chunks:
    """Return the chunks with texts that follow each other in one."""
    found: Chunks = []
    for chunk in chunks:
        last = found[-1] if found else None
        if isinstance(chunk, TextChunk) and isinstance(last, TextChunk):
            found[-1] = TextChunk(tokens=tuple(chain(last.tokens, chunk.tokens)))
        else:
            found.append(chunk)
    return found
