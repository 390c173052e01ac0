"""A projector whose images are laid out on canvases, with the tokens around their pieces.

MiniCPM-V 4.7's. Its file names the tokens; their embeddings come from the text model's, because
llama.cpp takes tokens and embeddings in batches of their own, and gives a token no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import GGUFError, ModelLoadError
from edgevlm.gguf_file import GGUFFile, GGUFTensor
from edgevlm.native.ggml import dequantize_rows
from edgevlm.native.projector import (
    BitmapPart,
    EncodedImage,
    ImageChunk,
    Projector,
    TextChunk,
    TextPart,
)
from edgevlm.runtime.frame import Markers, framed
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT
from edgevlm.runtime.prompt import ImageSpan
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.sliced_projector import with_canvas
from edgevlm.runtime.tiled_projector import ImageEncoder

# Of a projector's file.
MARKERS_KEY = "edgevlm.canvas_markers"
_TEXTS = ("<image>", "</image>", "<slice>", "</slice>", "\u010a")
_EMBEDDINGS = "token_embd.weight"


class FrameProjector:
    """A projector that gives each image and the tokens around its pieces as one chunk.

    Args:
        projector: lays the pieces out and encodes them.
        canvas: what images are cut from.
        markers: the tokens around their pieces.
        rows: embeddings of these by id, [n_embd] float32.
    """

    def __init__(
        self,
        projector: ImageEncoder,
        canvas: SliceCanvas,
        markers: Markers,
        rows: Mapping[int, NDArray[np.float32]],
    ) -> None:
        self._projector = projector
        self._canvas = canvas
        self._markers = markers
        self._rows = rows

    def tokenize(
        self, parts: Sequence[TextPart | BitmapPart], *, add_special: bool = False
    ) -> list[TextChunk | ImageChunk]:
        """Lay out a prompt, as Projector does."""
        chunks = self._projector.tokenize(parts, add_special=add_special)
        images = [part for part in parts if isinstance(part, BitmapPart)]
        grids = [self._canvas.token_grids(image.width, image.height) for image in images]
        return framed(chunks, grids, self._markers, self._rows)

    def encode(self, pixels: NDArray[np.uint8]) -> EncodedImage:
        """See Projector."""
        return self._projector.encode(pixels)


def read_markers(file: GGUFFile) -> Markers | None:
    """Return the tokens that have places, as a projector's file names them; None: none have.

    Raises:
        GGUFError: the key holds something else.
    """
    if MARKERS_KEY not in file.metadata:
        return None
    ids = numbers(file, MARKERS_KEY)
    if len(ids) != len(_TEXTS) or len(set(ids)) != len(ids) or min(ids) < 0:
        raise GGUFError(f"`{file.path}` has {MARKERS_KEY} = {ids[:8]}", hint=HINT)
    return Markers(
        image_start=ids[0], image_end=ids[1], slice_start=ids[2], slice_end=ids[3], newline=ids[4]
    )


def has_places(span: ImageSpan | None) -> bool:
    """Return whether a family's images have places on a canvas."""
    canvas = span.canvas if span is not None else None
    return isinstance(canvas, SliceCanvas) and canvas.markers is not None


def check_markers(file: GGUFFile, text: GGUFFile) -> None:
    """Hold the tokens against the text model's vocabulary.

    Raises:
        GGUFError: the projector's file names none that could be.
        ModelLoadError: they are others there.
    """
    markers = read_markers(file)
    if markers is None:
        return
    tokens = text.metadata["tokenizer.ggml.tokens"].value
    known = tokens if isinstance(tokens, list) else []
    for number, wanted in zip(markers.ids, _TEXTS, strict=True):
        if number >= len(known) or known[number] != wanted:
            raise ModelLoadError(
                f"token {number} of `{text.path}` is not {wanted!r}, to which the projector gives a"
                " place: it belongs to another model",
                hint="use the mmproj that was converted with this model",
            )


def image_encoder(
    projector: Projector | None, span: ImageSpan | None, text: GGUFFile
) -> ImageEncoder | None:
    """Return a projector that cuts and lays out images as its family's are.

    Args:
        projector: as it was opened; None for none.
        span: how the family writes an image.
        text: header of the text model.

    Raises:
        GGUFError: the text model has no embedding that could be read.
    """
    canvas = span.canvas if span is not None else None
    encoder = with_canvas(projector, canvas)
    if encoder is None or not isinstance(canvas, SliceCanvas) or canvas.markers is None:
        return encoder
    return FrameProjector(encoder, canvas, canvas.markers, _read_rows(text, canvas.markers.ids))


def _read_rows(text: GGUFFile, ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    tensor = next((tensor for tensor in text.tensors if tensor.name == _EMBEDDINGS), None)
    if tensor is None or len(tensor.shape) != 2 or max(ids) >= tensor.shape[0]:
        raise GGUFError(f"`{text.path}` has no `{_EMBEDDINGS}` of all its tokens", hint=HINT)
    return {number: _read_row(tensor, number) for number in ids}


def _read_row(tensor: GGUFTensor, number: int) -> NDArray[np.float32]:
    n_rows, width = tensor.shape
    n_row_bytes = tensor.n_bytes // n_rows
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset + number * n_row_bytes)
        data = stream.read(n_row_bytes)
    if tensor.type == "F32":
        return np.frombuffer(data, dtype=np.float32)
    return dequantize_rows(data, tensor.type, width)[0]
