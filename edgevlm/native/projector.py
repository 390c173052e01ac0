"""libmtmd: a projector (mmproj) that turns images into embeddings for its text model.

Structures and functions: mtmd.h of llama-cpp-python 0.3.36. An image's place in the prompt (how
many tokens, which positions) comes from a bitmap without pixels, which costs nothing; its
embeddings are a function of its pixels alone, so they can be made, timed and kept apart.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ImageError, ModelLoadError
from edgevlm.native.channel_sums import ChannelSums
from edgevlm.native.devices import offload_handles
from edgevlm.native.graph_callback import GraphCallback
from edgevlm.native.graph_input import GraphInput, InputObserver
from edgevlm.native.handle import owned
from edgevlm.native.library import because, complaints, load_library
from edgevlm.native.position_scale import PlainScale
from edgevlm.native.row_ends import with_row_ends
from edgevlm.native.smooth_table import SmoothTable
from edgevlm.native.token_rows import RowOrder, TokenRows

_TEXT, _IMAGE = 0, 1  # enum mtmd_input_chunk_type
# The kind of rows that a vision tower reads, see ChannelSums.
VISION_ROWS = "vision"
_ALL = slice(None)
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """Text of a prompt.

    Attributes:
        text: as it stands.
        parse_special: whether control tokens written out in it become those tokens.
    """

    text: str
    parse_special: bool


@dataclass(frozen=True, kw_only=True)
class BitmapPart:
    """An image of a prompt: its size, and its pixels when it shall be encoded.

    Attributes:
        width: in pixels.
        height: in pixels.
        pixels: RGB uint8 [height, width, 3], or None for a placeholder that is only counted.
    """

    width: int
    height: int
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class TextChunk:
    """Tokens of a prompt.

    Attributes:
        tokens: token ids.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ImageChunk:
    """One encode of an image: all of it, or one tile.

    Attributes:
        n_tokens: visual tokens, one row of embeddings each.
        n_positions_used: how far the next text position moves.
        positions: [n_positions, n_tokens] int32, relative to the first token's position.
        causal: whether its tokens only see those before them.
        moves: [n_positions, n_tokens] int32, 0 where a position is not relative: a row or a column
            of HunYuanVL; None: all are.
    """

    n_tokens: int
    n_positions_used: int
    positions: NDArray[np.int32]
    causal: bool
    moves: NDArray[np.int32] | None = None

    def positions_at(self, first: int) -> NDArray[np.int32]:
        """Return the absolute positions of an image whose first token has this one."""
        moved = np.int32(first) if self.moves is None else self.moves * np.int32(first)
        return self.positions + moved


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image as its text model sees it.

    Attributes:
        tiles: embeddings per encode, each [n_tokens, n_embd_inp] float32.
        preprocess_ms: resizing, cutting and normalising.
        encode_ms: vision tower and projector.
        graph_input: what the vision tower was given; None unless the projector observes it.
    """

    tiles: tuple[NDArray[np.float32], ...]
    preprocess_ms: float
    encode_ms: float
    graph_input: GraphInput | None = None


class TextSide(Protocol):
    """What a projector asks of its text model."""

    @property
    def handle(self) -> int:
        """The native model; its vocabulary is enough."""
        ...

    @property
    def n_embd_inp(self) -> int:
        """Length of a row of embeddings."""
        ...

    @property
    def n_positions(self) -> int:
        """Position numbers of one token."""
        ...

    @property
    def has_four_positions(self) -> bool:
        """Whether it was trained with four of them for every token."""
        ...


class Projector:
    """An open mmproj. Made by `open_projector`."""

    def __init__(
        self,
        handle: int,
        model: TextSide,
        observer: InputObserver | None = None,
        row_end: bytes = b"",
        callback: GraphCallback | None = None,
        sums: ChannelSums | None = None,
    ) -> None:
        self._c: Any = load_library().mtmd
        self._row_end = row_end
        self._handle = handle
        self._model = model
        self._observer = observer
        self._callback = callback
        self._sums = sums

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        """Lay out a prompt: token ids of its text, places and sizes of its images.

        Args:
            parts: texts and bitmaps in order; pixels are not looked at.
            add_special: add BOS and EOS where the vocabulary asks for them.

        Raises:
            ImageError: an image that the projector cannot take.
        """
        blank = [
            part if isinstance(part, TextPart) else BitmapPart(width=part.width, height=part.height)
            for part in parts
        ]
        with self._chunks(blank, add_special) as chunks:
            return [self._read_chunk(chunk) for chunk in chunks]

    def encode(self, pixels: NDArray[np.uint8], *, chosen: slice = _ALL) -> EncodedImage:
        """Turn one image, RGB uint8 [height, width, 3], into embeddings.

        Args:
            pixels: of the image.
            chosen: which of the encodes that libmtmd cuts it into are made.

        Raises:
            ImageError: libmtmd cannot take the image.
        """
        height, width, _ = pixels.shape
        part = BitmapPart(width=width, height=height, pixels=pixels)
        started = time.perf_counter()
        with self._chunks([part], False) as chunks:
            preprocess_ms = (time.perf_counter() - started) * 1e3
            if self._observer:
                self._observer.start()
            started = time.perf_counter()
            images = [
                chunk for chunk in chunks if self._c.mtmd_input_chunk_get_type(chunk) == _IMAGE
            ]
            tiles = tuple(map(self._encode_chunk, images[chosen]))
            encode_ms = (time.perf_counter() - started) * 1e3
        return EncodedImage(
            tiles=tiles,
            preprocess_ms=preprocess_ms,
            encode_ms=encode_ms,
            graph_input=self._observer.seen() if self._observer else None,
        )

    @contextmanager
    def _chunks(
        self, parts: Sequence[TextPart | BitmapPart], add_special: bool
    ) -> Generator[list[int]]:
        c = self._c
        with ExitStack() as stack:
            keep: list[Any] = []  # what the C structures point to
            native = [self._native_part(part, stack, keep) for part in parts]
            pointers = (c.POINTER(c.mtmd_input_part) * len(native))(*map(_pointer, native))
            output = stack.enter_context(
                owned(c.mtmd_input_chunks_init(), c.mtmd_input_chunks_free, error=_out_of_memory)
            )
            with complaints() as lines:
                status = c.mtmd_tokenize_from_parts(
                    self._handle, output, pointers, len(native), add_special
                )
            if status:
                raise ImageError(
                    f"the projector cannot take this image (status {status}){because(lines)}",
                    hint="try another size or format",
                )
            n_chunks = c.mtmd_input_chunks_size(output)
            yield [c.mtmd_input_chunks_get(output, index) for index in range(n_chunks)]

    def _native_part(self, part: TextPart | BitmapPart, stack: ExitStack, keep: list[Any]) -> Any:
        c = self._c
        native = c.mtmd_input_part()
        if isinstance(part, TextPart):
            data = part.text.encode("utf-8", "replace")
            text = c.mtmd_input_text(
                text=data, text_len=len(data), add_special=False, parse_special=part.parse_special
            )
            keep += [data, text]
            native.text = ctypes.pointer(text)
            return native
        data = None
        if part.pixels is not None:
            pixels = np.ascontiguousarray(part.pixels, dtype=np.uint8)
            if pixels.shape != (part.height, part.width, 3):
                raise ValueError(f"pixels of shape {pixels.shape}, want [height, width, 3]")
            keep.append(pixels)
            data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = c.mtmd_bitmap_init(part.width, part.height, data)
        native.bitmap = stack.enter_context(owned(bitmap, c.mtmd_bitmap_free, error=_out_of_memory))
        return native

    def _read_chunk(self, chunk: int) -> TextChunk | ImageChunk:
        c = self._c
        kind = c.mtmd_input_chunk_get_type(chunk)
        if kind == _TEXT:
            n_tokens = ctypes.c_size_t()
            tokens = c.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n_tokens))
            return TextChunk(tokens=tuple(tokens[: n_tokens.value]))
        n_tokens = int(c.mtmd_input_chunk_get_n_tokens(chunk))
        return ImageChunk(
            n_tokens=n_tokens,
            n_positions_used=int(c.mtmd_input_chunk_get_n_pos(chunk)),
            positions=self._positions(chunk, n_tokens),
            causal=not c.mtmd_decode_use_non_causal(self._handle, chunk),
            moves=self._moves(chunk, n_tokens),
        )

    def _positions(self, chunk: int, n_tokens: int, *, first: int = 0) -> NDArray[np.int32]:
        if self._model.n_positions == 1:
            return np.arange(n_tokens, dtype=np.int32)[None]
        c = self._c
        image = c.mtmd_input_chunk_get_tokens_image(chunk)
        places = [c.mtmd_image_tokens_get_decoder_pos(image, first, i) for i in range(n_tokens)]
        # The order of llama.cpp's sections: time, row, column, and one that few models use.
        return np.array([[p.t, p.y, p.x, p.z] for p in places], dtype=np.int32).T.copy()

    def _moves(self, chunk: int, n_tokens: int) -> NDArray[np.int32] | None:
        if not self._model.has_four_positions:
            return None
        return self._positions(chunk, n_tokens, first=1) - self._positions(chunk, n_tokens)

    def _encode_chunk(self, chunk: int) -> NDArray[np.float32]:
        c = self._c
        if self._sums is not None:
            self._sums.kind = VISION_ROWS
        watched = self._callback.one_graph() if self._callback else nullcontext()
        with complaints() as lines, watched:
            status = c.mtmd_encode_chunk(self._handle, chunk)
        if status:
            raise ImageError(f"llama.cpp failed to encode the image{because(lines)}")
        shape = (int(c.mtmd_input_chunk_get_n_tokens(chunk)), self._model.n_embd_inp)
        rows = np.ctypeslib.as_array(c.mtmd_get_output_embd(self._handle), shape=shape)
        return with_row_ends(rows.copy(), self._row_end)


def _pointer(structure: Any) -> Any:
    return ctypes.pointer(structure)


def _out_of_memory() -> ModelLoadError:
    return ModelLoadError("there is no memory for the image", hint="use a smaller image")


@contextmanager
def open_projector(
    path: Path,
    model: TextSide,
    *,
    n_threads: int,
    device: str = "auto",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    observe: bool = False,
    row_end: bytes = b"",
    max_tokens: int = 0,
    row_order: RowOrder | None = None,
    plain_scale: bool = False,
    smooth_table: bool = False,
    sums: ChannelSums | None = None,
) -> Generator[Projector]:
    """Open the mmproj at `path`, whose header the caller has checked, for `model`.

    With `observe`, each encoded image comes with the pixels that the vision tower was given.
    `row_end` holds the float32 values of what stands between the rows of an image, if anything.
    `max_tokens`, unless it is 0, is the most that an image may have, whatever libmtmd would allow.
    `row_order` says which rows llama.cpp takes otherwise than the tower was trained with, and
    `plain_scale` that it smooths a position table where the tower was trained without that,
    `smooth_table` the other way round. `sums` is told of all that goes through its matrices.

    Raises:
        ModelLoadError: libmtmd refuses the file, or it does not fit the text model.
    """
    c: Any = load_library().mtmd
    params = c.mtmd_context_params_default()
    handles = offload_handles(device)
    params.use_gpu = handles is None or bool(handles)
    if handles:
        params.device = handles[0]
    params.n_threads = n_threads
    params.print_timings = False
    # A warm-up would encode a picture of the largest size first: seconds on a small machine.
    params.warmup = False
    if max_tokens:
        params.image_max_tokens = max_tokens
        # Whoever knows the most has scaled the image: libmtmd must not make it larger.
        params.image_min_tokens = 1
    params.flash_attn_type = _FLASH_ATTENTION[flash_attention]
    observer = InputObserver() if observe else None
    mends: list[TokenRows | PlainScale | SmoothTable] = []
    if row_order is not None and row_order != RowOrder():
        mends.append(TokenRows(row_order))
    mends += [PlainScale()] if plain_scale else []
    mends += [SmoothTable()] if smooth_table else []
    callback = _callback(observer, mends, sums)
    callback.install(params)
    with complaints() as lines:
        handle = c.mtmd_init_from_file(str(path).encode(), model.handle, params)

    def error() -> ModelLoadError:
        return ModelLoadError(
            f"llama.cpp cannot load the projector `{path}`{because(lines)}",
            hint="use the mmproj that was converted with this model",
        )

    with owned(handle, c.mtmd_free, error=error) as context:
        yield Projector(context, model, observer, row_end, callback, sums)


def _callback(
    observer: InputObserver | None,
    mends: Sequence[TokenRows | PlainScale | SmoothTable],
    sums: ChannelSums | None,
) -> GraphCallback:
    faults = {mend.fault for mend in mends} - {""}
    if faults:
        raise ModelLoadError(
            "llama.cpp gives this projector's patches other positions than it was trained with,"
            f" which cannot be mended: {faults.pop()}",
            hint="install the llama-cpp-python that edgevlm names",
        )
    before = [mend for mend in mends if not isinstance(mend, SmoothTable)]
    behind = [mend for mend in mends if isinstance(mend, SmoothTable)]
    seeing = [observer] if observer is not None and not observer.fault else []
    return GraphCallback([*seeing, *before], [*behind, *([sums] if sums is not None else [])])
