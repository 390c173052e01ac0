"""An image and the tokens around its pieces, all of which have places on one canvas.

MiniCPM-V 4.7's: the whole image is stretched over the canvas that its slices tile, the tokens
around each stand at its corners, and all have one time. Facts: transformers
modeling_minicpmv4_7.py (`_group_visual_frames`, `get_vision_position_ids`, `get_rope_index`).
Images here always have their numbers between them, so that each is a group of its own there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ImageError
from edgevlm.native.projector import ImageChunk, TextChunk

# Stands for a visual token where token ids are listed.
VISUAL_TOKEN = -1
Places = NDArray[np.int32]
# Rows and columns of visual tokens.
Grid = tuple[int, int]
Item = int | ImageChunk
# Tokens between two slices of a row: what ends one, what begins the next.
_N_BETWEEN = 2


@dataclass(frozen=True, kw_only=True)
class Markers:
    """Ids of the tokens that have places on a canvas.

    Attributes:
        image_start, image_end: around the whole image.
        slice_start, slice_end: around each slice.
        newline: between rows of slices, and behind an image.
    """

    image_start: int
    image_end: int
    slice_start: int
    slice_end: int
    newline: int

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them."""
        return self.image_start, self.image_end, self.slice_start, self.slice_end, self.newline


@dataclass(frozen=True, kw_only=True)
class Frame(ImageChunk):
    """A whole image as one chunk, the tokens around its pieces among its rows.

    Attributes:
        ids: of its tokens, VISUAL_TOKEN for each visual one.
        marks: embeddings of the others in order, [n, n_embd] float32.
        canvas: [4, n_tokens] int32: time, row, column and one that is not used.
    """

    ids: tuple[int, ...]
    marks: NDArray[np.float32]
    canvas: Places

    def places_at(self, first: int) -> Places:
        """Return what rotary embeddings turn by in a canvas whose corner has this position."""
        # A token just outside of a picture at the very beginning stays at 0.
        return np.maximum(self.canvas + np.int32(first), 0)

    def rows(self, tiles: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the embeddings of all its pieces, and of the tokens around them."""
        visual = np.concatenate(tiles)
        is_visual = np.asarray(self.ids) == VISUAL_TOKEN
        if len(visual) != int(is_visual.sum()):
            raise RuntimeError("libmtmd counted other visual tokens than it encoded")
        rows = np.empty((self.n_tokens, visual.shape[1]), dtype=np.float32)
        rows[is_visual] = visual
        rows[~is_visual] = self.marks
        return rows


def framed(
    chunks: Sequence[TextChunk | ImageChunk],
    grids: Sequence[Sequence[Sequence[Grid]]],
    markers: Markers,
    rows: Mapping[int, NDArray[np.float32]],
) -> list[TextChunk | ImageChunk]:
    """Return a layout with each image in one piece, from the token before it to the last marker.

    Args:
        chunks: the layout, a chunk for each piece of an image.
        grids: of each image's pieces, the whole first; of each those that it may have.
        markers: ids of the tokens around pieces.
        rows: [n_embd] float32, the embedding of each of them by its id.

    Raises:
        ImageError: libmtmd lays out a piece otherwise.
    """
    items = [item for chunk in chunks for item in _items(chunk)]
    found: list[TextChunk | ImageChunk] = []
    at = 0
    for pieces, known in zip(_images(items, markers), grids, strict=True):
        start, end = pieces[0] - 1, pieces[-1] + 1
        while end < len(items) and items[end] in markers.ids:
            end += 1
        found += _text(items[at:start])
        within = [piece - start for piece in pieces]
        found.append(_frame(items[start:end], within, known, rows))
        at = end
    return [*found, *_text(items[at:])]


def _items(chunk: TextChunk | ImageChunk) -> Sequence[Item]:
    return chunk.tokens if isinstance(chunk, TextChunk) else [chunk]


def _images(items: Sequence[Item], markers: Markers) -> Iterator[list[int]]:
    """Return where the pieces of each image stand: the whole first, then its slices."""
    pieces: list[int] = []
    for number, item in enumerate(items):
        if not isinstance(item, ImageChunk):
            continue
        if pieces and items[number - 1] != markers.slice_start:
            yield pieces
            pieces = []
        pieces.append(number)
    if pieces:
        yield pieces


def _text(items: Sequence[Item]) -> list[TextChunk]:
    tokens = tuple(item for item in items if isinstance(item, int))
    return [TextChunk(tokens=tokens)] if tokens else []


def _frame(
    items: Sequence[Item],
    pieces: Sequence[int],
    known: Sequence[Sequence[Grid]],
    rows: Mapping[int, NDArray[np.float32]],
) -> Frame:
    """Return the chunk of one image.

    Args:
        items: its tokens and pieces.
        pieces: where among them the pieces stand.
        known: rows and columns that each piece may have.
        rows: see `framed`.
    """
    chunks = [item for item in items if isinstance(item, ImageChunk)]
    found = [_found(grids, chunk) for grids, chunk in zip(known, chunks, strict=True)]
    grids = dict(zip(pieces, found, strict=True))
    size, spots = _spots(pieces, found)
    parts: list[Places] = []
    for number in range(len(items)):
        grid = grids.get(number, (1, 1))
        spread = size if number == pieces[0] else grid
        parts.append(_placed(spots.get(number, (0, 0)), grid, spread))
    tokens = [token for item in items for token in _ids(item)]
    order = np.zeros((4, len(tokens)), dtype=np.int32)
    # One time for all; rows in the order of reading, which is what the cache goes by.
    order[1] = np.arange(len(tokens))
    return Frame(
        n_tokens=len(tokens),
        n_positions_used=max(size) + 1,
        positions=order,
        causal=chunks[0].causal,
        ids=tuple(tokens),
        marks=np.stack([rows[token] for token in tokens if token != VISUAL_TOKEN]),
        canvas=np.concatenate(parts, axis=1),
    )


def _spots(pieces: Sequence[int], grids: Sequence[Grid]) -> tuple[Grid, dict[int, Grid]]:
    """Return rows and columns of the canvas, and row and column of what is not in its corner.

    Args:
        pieces: where the whole image and its slices stand among an image's items.
        grids: rows and columns of visual tokens of each.
    """
    slices = pieces[1:]
    columns = _n_columns(slices)
    high, wide = grids[1] if slices else grids[0]
    size = (len(slices) // columns * high, columns * wide) if slices else grids[0]
    spots = {0: (-1, -1), pieces[0] + 1: size}
    for number, (piece, (height, width)) in enumerate(zip(slices, grids[1:], strict=True)):
        top, left = number // columns * high, number % columns * wide
        spots |= {piece - 1: (top, left), piece: (top, left)}
        spots[piece + 1] = top + height - 1, left + width - 1
        following = slices[number + 1] if number + 1 < len(slices) else piece
        for newline in range(piece + 2, following - 1):
            spots[newline] = top + high - 1, columns * wide
    return size, spots


def _n_columns(slices: Sequence[int]) -> int:
    """Return how many slices stand in a row, which ends where more is between two of them."""
    for number, (one, following) in enumerate(pairwise(slices)):
        if following - one - 1 > _N_BETWEEN:
            return number + 1
    return max(1, len(slices))


def _placed(corner: Grid, grid: Grid, spread: Grid) -> Places:
    """Return [4, tokens] of a grid of tokens, row by row, that is spread over more or less."""
    down, across = (_stretched(n, length) for n, length in zip(grid, spread, strict=True))
    places = np.zeros((4, *grid), dtype=np.int32)
    places[1] = corner[0] + down[:, None]
    places[2] = corner[1] + across[None]
    return places.reshape(4, -1)


def _stretched(n: int, length: int) -> Places:
    """Return n places from 0 to length - 1, as torch's float32 `linspace` rounds them."""
    if n == 1:
        return np.zeros(1, dtype=np.int32)
    last, step = np.float32(length - 1), np.float32(length - 1) / np.float32(n - 1)
    order = np.arange(n, dtype=np.float32)
    # From either end to the middle.
    exact = np.where(order < n // 2, order * step, last - order[::-1] * step)
    return np.rint(exact).astype(np.int32)


def _found(grids: Sequence[Grid], chunk: ImageChunk) -> Grid:
    """Return rows and columns of a piece: the first that are as many tokens as libmtmd counts.

    Raises:
        ImageError: none are.
    """
    for grid in grids:
        if math.prod(grid) == chunk.n_tokens:
            return grid
    rows, columns = grids[0]
    raise ImageError(
        f"llama.cpp makes {chunk.n_tokens} visual tokens of a piece of {columns} x {rows}",
        hint="crop the image, or scale it to another size",
    )


def _ids(item: Item) -> Sequence[int]:
    return token_ids(item) if isinstance(item, ImageChunk) else [item]


def token_ids(chunk: TextChunk | ImageChunk) -> tuple[int, ...]:
    """Return the ids of a chunk's tokens, VISUAL_TOKEN for each visual one."""
    if isinstance(chunk, TextChunk):
        return chunk.tokens
    return chunk.ids if isinstance(chunk, Frame) else (VISUAL_TOKEN,) * chunk.n_tokens
