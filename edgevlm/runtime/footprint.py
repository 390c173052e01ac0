"""How much RAM a model will take, from the headers of its files alone.

What the process of the engine holds at its worst (the kernel's "peak resident set", mapped pages
included), on a CPU. What was found by looking at llama-cpp-python 0.3.36 at work, part by part:

- Weights of the text model are mapped and stay resident; the projector's are read into memory.
- Matrices of some types are kept a second time, interleaved for the processor's instructions
  ("repacked"; which, says repacked.py). The mapped pages they came from are never read again: the
  kernel can drop them, yet they count as resident.
- KV cache, recurrent states and the text model's compute buffer: see text_memory.py.
- Compute buffer of the vision tower, with D its width, G its feed-forward width and M the patches
  per visual token: max(9.5 D, 5 D + G, 5 D + I / M) floats per patch, I the width of the rows that
  enter the text model; 3 D + 4 G where the feed-forward network is gated; without flash attention
  10 D and a table of patches x patches per head. Fitted on towers of D 256 to 1024, at 256 and 1024
  patches.
- A tower with windows (Qwen2.5-VL, MiniCPM-V 4.6) has a mask of patches x patches: as F32 in
  libmtmd and in the graph at one moment, then in the graph alone, as F16 where attention is flash
  attention. For an image of 4096 tokens that is 2 GB.
- While libmtmd opens a projector it makes two blank pictures of the size for a warm-up, even with
  the warm-up off, and frees them: 24 bytes a pixel, 52 MB for Qwen3-VL. For a tiny model this is
  the peak.
- Vocabulary: llama.cpp's tables, and ours of the token strings.

- An image in tiles (Idefics3): all of them are kept as floats while one after the other is encoded.

Not modelled: layers on a GPU, and that layers for multi-token prediction are never read. The
constants of Python and libraries are those of Linux on x86-64.

`benchmarks/memory.py` holds the whole against the kernel's peaks: over 17 cases (`shapes` and 0.5
billion random weights, F16 to Q4_0, n_ctx 256 to 8192) predicted / measured is 0.94 to 1.03 for two
questions with an image each. After the first question it may lie higher, 1.14 with an image of
1024 x 1024 on `shapes`, 1.25 without flash attention and the context almost empty, because buffers
that are reserved for the worst case are resident only once they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.convolution_memory import convolution_compute
from edgevlm.runtime.deepseek_projector import page_graph_n_bytes
from edgevlm.runtime.gemma4_projector import pool as gemma4_pool
from edgevlm.runtime.gemma4_projector import read_canvas as read_gemma4_canvas
from edgevlm.runtime.glm_projector import feed_forward_width
from edgevlm.runtime.glm_projector import read_canvas as read_glm_canvas
from edgevlm.runtime.granite4_projector import n_tiles as n_granite4_tiles
from edgevlm.runtime.header import n_items, numbers
from edgevlm.runtime.header import text as header_text
from edgevlm.runtime.hunyuan_projector import HUNYUAN, copied_table_n_bytes, read_hunyuan_canvas
from edgevlm.runtime.lfm2_canvas import Lfm2Canvas
from edgevlm.runtime.mlp_projector import read_canvas
from edgevlm.runtime.paddleocr_projector import read_paddleocr_canvas
from edgevlm.runtime.pixtral_projector import MAX_LIGHTON_TOKENS, read_longest_canvas
from edgevlm.runtime.qwen_projector import QWEN_KINDS, read_qwen_canvas
from edgevlm.runtime.repacked import repacked_n_bytes
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.text_memory import (
    F32_BYTES,
    TextSizes,
    kv_cache,
    recurrent_state,
    text_compute,
    work,
)
from edgevlm.runtime.tile_canvas import MAX_TILES, USUAL_TILES, TileCanvas

# Context length in tokens when nobody names one, unless the model's own is shorter.
DEFAULT_N_CTX = 4096
# Python, numpy, Pillow, jinja2 and llama.cpp's libraries once loaded; then a context's tables, and
# a projector's.
_BASELINE_BYTES = 54_000_000
_PROJECTOR_TABLE_BYTES = 5_000_000
# Per token and per merge in llama.cpp, and per token string held by Python beside a projector.
_TOKEN_BYTES, _MERGE_BYTES, _TOKEN_STRING_BYTES = 215, 190, 140
# Towers that take images of any size: llama.cpp's own limits (tools/mtmd/clip.cpp) in tokens, and
# the side of its first picture; by what the projector's type begins with.
_DYNAMIC = {
    "pixtral": (8, 1024, 16),
    "lightonocr": (8, MAX_LIGHTON_TOKENS, 16),
    "lfm2": (64, 256, 16),
}
_MINICPM, _GLM, _PADDLEOCR, _GEMMA4 = "minicpmv4_6", "glm4v", "paddleocr", "gemma4v"
# Its patches are whole visual tokens.
_GEMMA4_UNIFIED = "gemma4uv"
_DEEPSEEK_OCR = ("deepseekocr", "deepseekocr2")
_OF_FOUR = ("gemma3", *_DEEPSEEK_OCR)
# Those whose images are stretched to the limits of the file, and the side of their first picture.
_STRETCHED = {
    **dict.fromkeys(QWEN_KINDS, (read_qwen_canvas, 46)),
    _GLM: (read_glm_canvas, 46),
    _PADDLEOCR: (read_paddleocr_canvas, 28),
    HUNYUAN: (read_hunyuan_canvas, 32),
    **dict.fromkeys((_GEMMA4, _GEMMA4_UNIFIED), (read_gemma4_canvas, 16)),
}
# Image pixels as floats: libmtmd's own, its batch's copy; and the picture itself, twice.
_PIXEL_BYTES = 2 * 12 + 2 * 3
# The same of each tile that waits, with the two pictures that the tiles are cut from.
_TILE_PIXEL_BYTES = 12 + 3 * 3
# InternVL's tiles are cut here and made floats one by one: the picture that they are cut from.
_CANVAS_PIXEL_BYTES = 2 * 3
# Embeddings: in the graph, in libmtmd, in numpy.
_EMBEDDING_COPIES = 3


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Predicted RAM of one loaded model, in bytes, part by part.

    Attributes:
        n_ctx: the context it is for.
        weights: mapped tensors of the text model.
        repacked: second copies of some of them.
        kv_cache: keys and values of all layers that keep them.
        recurrent_state: what layers of linear attention keep instead.
        mmproj: weights of the projector.
        vocabulary: tokens and merges, and the file's header.
        text_compute: intermediate values of the text model.
        vision_compute: intermediate values of vision tower and projector, and the largest image.
        warmup: pictures that libmtmd makes and frees while it opens a projector.
        baseline: Python and libraries.
    """

    n_ctx: int
    weights: int
    repacked: int
    kv_cache: int
    recurrent_state: int
    mmproj: int
    vocabulary: int
    text_compute: int
    vision_compute: int
    warmup: int
    baseline: int

    @property
    def peak_n_bytes(self) -> int:
        """The most that is resident at one moment."""
        kept = self.weights + self.repacked + self.kv_cache + self.recurrent_state
        kept += self.mmproj + self.vocabulary
        working = self.text_compute + self.vision_compute
        return kept + self.baseline + max(working, self.warmup)

    @property
    def needed_n_bytes(self) -> int:
        """What must be had: the peak without pages that the kernel may drop at no cost."""
        return self.peak_n_bytes - self.repacked


def predict_footprint(
    text: GGUFFile,
    mmproj: GGUFFile | None,
    *,
    n_ctx: int,
    kv_type: str = "F16",
    flash_attention: bool = True,
    image_sizes: Sequence[tuple[int, int]] = (),
    features: frozenset[str] = frozenset(),
) -> Footprint:
    """Predict the RAM of a chat.

    Args:
        text: header of the text model.
        mmproj: header of the projector, None for none.
        n_ctx: context length in tokens.
        kv_type: tensor type of the KV cache.
        flash_attention: whether it is on.
        image_sizes: (width, height) in pixels of the images to come, the largest counts; none: an
            image of 1024 x 1024 is allowed for where there is a projector.
        features: of the processor, by ggml's names; they decide what is repacked.
    """
    sizes = TextSizes.read(text)
    vision = warmup = n_tables = 0
    if mmproj is not None:
        vision = _vision_compute(
            mmproj, sizes, n_ctx, image_sizes or ((1024, 1024),), flash_attention
        )
        limits = _limits(mmproj)
        side = limits[2] * _cell(mmproj) if limits else _image_side(mmproj)
        warmup = 24 * side * side
        n_tables = _PROJECTOR_TABLE_BYTES
    return Footprint(
        n_ctx=n_ctx,
        weights=text.n_data_bytes,
        repacked=repacked_n_bytes(text, features),
        kv_cache=kv_cache(sizes, n_ctx, kv_type),
        recurrent_state=recurrent_state(sizes),
        mmproj=mmproj.n_data_bytes if mmproj is not None else 0,
        vocabulary=_vocabulary(text, with_strings=mmproj is not None),
        text_compute=text_compute(sizes, n_ctx, flash_attention),
        vision_compute=vision,
        warmup=warmup,
        baseline=_BASELINE_BYTES + n_tables,
    )


def _vision_compute(
    mmproj: GGUFFile,
    sizes: TextSizes,
    n_ctx: int,
    image_sizes: Sequence[tuple[int, int]],
    flash_attention: bool,
) -> int:
    if _projector_type(mmproj) == "gemma3nv":
        return convolution_compute(mmproj)
    image = _largest_image(mmproj, n_ctx, image_sizes)
    n_patches = image.n_patches
    width = max(numbers(mmproj, "clip.vision.embedding_length"), default=0)
    ffn = max(numbers(mmproj, "clip.vision.feed_forward_length"), default=0)
    if _projector_type(mmproj) == _GLM:
        ffn = feed_forward_width(mmproj)
    n_heads = max(numbers(mmproj, "clip.vision.attention.head_count"), default=1)
    merged = _merge(mmproj) ** 2
    is_gated = any(tensor.name == "v.blk.0.ffn_gate.weight" for tensor in mmproj.tensors)
    feed_forward = 3 * width + 4 * ffn if is_gated else 5 * width + ffn
    floats = max(int(9.5 * width), feed_forward, 5 * width + sizes.input // merged)
    if _projector_type(mmproj) == _GEMMA4_UNIFIED:
        # Pixels, the same in rows, and those normalized.
        floats = 9 * _patch(mmproj) ** 2
    elif not flash_attention:
        floats = max(floats, 10 * width + n_heads * n_patches)
    graph = F32_BYTES * n_patches * floats
    if any(numbers(mmproj, "clip.vision.n_wa_pattern")) or _projector_type(mmproj) == _MINICPM:
        mask = n_patches**2 * F32_BYTES
        graph = max(2 * mask, graph + (mask // 2 if flash_attention else mask))
    if _projector_type(mmproj) in _DEEPSEEK_OCR:
        graph = page_graph_n_bytes(mmproj, image_sizes, flash_attention=flash_attention)
    graph += copied_table_n_bytes(mmproj)
    n_copies = _EMBEDDING_COPIES + image.n_waiting + image.n_joined
    embeddings = n_copies * sizes.input * n_patches // merged
    is_cut_here = image.n_joined or _projector_type(mmproj) in ("internvl", "lfm2", _MINICPM)
    waiting_bytes = _CANVAS_PIXEL_BYTES if is_cut_here else _TILE_PIXEL_BYTES
    n_source = max((width * height for width, height in image_sizes), default=0)
    return (
        graph
        + F32_BYTES * embeddings
        + (_PIXEL_BYTES + image.n_waiting * waiting_bytes) * image.n_pixels
        + 3 * n_source
        + work(max(width, ffn), n_patches)
    )


@dataclass(frozen=True, kw_only=True)
class _Encodes:
    """What an image is made into: one encode, or tiles of one size.

    Attributes:
        n_patches: of one encode.
        n_pixels: of one encode.
        n_waiting: encodes besides that one.
        n_joined: encodes that are copied once more when all are there.
    """

    n_patches: int
    n_pixels: int
    n_waiting: int = 0
    n_joined: int = 0


def _largest_image(
    mmproj: GGUFFile, n_ctx: int, image_sizes: Sequence[tuple[int, int]]
) -> _Encodes:
    """Return what the image that costs the most is made into."""
    if _projector_type(mmproj) == "granite4_vision":
        # All of an image's tiles go through the graph at once.
        n_encodes = 1 + max(n_granite4_tiles(mmproj, *size) for size in image_sizes)
        side = _image_side(mmproj)
        n_patches = (side // _patch(mmproj)) ** 2
        return _Encodes(n_patches=n_encodes * n_patches, n_pixels=n_encodes * side * side)
    if _projector_type(mmproj) == _MINICPM:
        return _largest_slices(mmproj, n_ctx, image_sizes)
    if joined := _joined_tiles(mmproj, image_sizes):
        return joined
    if _projector_type(mmproj) == "lightonocr":
        # libmtmd makes small images larger.
        image_sizes = [read_longest_canvas(mmproj).laid_out(*size) for size in image_sizes]
    limits = _limits(mmproj)
    n_tiles = max(_n_tiles(mmproj, *size) for size in image_sizes)
    if limits is None or n_tiles:
        side = _tile_side(mmproj)
        n_patches = (side // _patch(mmproj)) ** 2
        # An image that does not fit into the context is refused before it is encoded.
        n_most = n_ctx * _merge(mmproj) ** 2 // max(1, n_patches)
        n_waiting = max(0, min(n_tiles, n_most - 1))
        return _Encodes(n_patches=n_patches, n_pixels=side * side, n_waiting=n_waiting)
    area = _cell(mmproj) ** 2
    least, most = limits[0], max(limits[0], min(limits[1], n_ctx))
    n_tokens = max(-(-width * height // area) for width, height in image_sizes)
    n_tokens = min(max(n_tokens, least), most)
    return _Encodes(n_patches=n_tokens * _merge(mmproj) ** 2, n_pixels=n_tokens * area)


def _largest_slices(
    mmproj: GGUFFile, n_ctx: int, image_sizes: Sequence[tuple[int, int]]
) -> _Encodes:
    """Return the pieces of the image of most of them, each as large as the largest of all."""
    canvas = SliceCanvas(side=_image_side(mmproj), cell=_cell(mmproj))
    sizes = [canvas.whole_size(*size) for size in image_sizes]
    cut = [size for size in image_sizes if canvas.grid(*size) != (0, 0)]
    sizes += [canvas.slice_size(*size) for size in cut]
    n_pixels = max(width * height for width, height in sizes)
    n_waiting = max((math.prod(canvas.grid(*size)) for size in cut), default=0)
    n_most = n_ctx * _cell(mmproj) ** 2 // n_pixels
    return _Encodes(
        n_patches=n_pixels // _patch(mmproj) ** 2,
        n_pixels=n_pixels,
        n_waiting=max(0, min(n_waiting, n_most - 1)),
    )


def _joined_tiles(mmproj: GGUFFile, image_sizes: Sequence[tuple[int, int]]) -> _Encodes | None:
    """Return the tiles of LLaVA-NeXT's image of most of them; None of another projector."""
    canvas = read_canvas(mmproj) if _projector_type(mmproj) == "mlp" else None
    if canvas is None:
        return None
    n_tiles = max(math.prod(canvas.grid(*size)) for size in image_sizes)
    return _Encodes(
        n_patches=canvas.cells**2,
        n_pixels=canvas.side**2,
        n_waiting=n_tiles,
        # As pieces of one picture, then with the ends of its rows.
        n_joined=2 * (1 + n_tiles),
    )


def _n_tiles(mmproj: GGUFFile, width: int, height: int) -> int:
    """Return how many tiles stand beside the overview of an image (tools/mtmd/mtmd-image.cpp)."""
    longest = max(numbers(mmproj, "clip.vision.preproc_image_size"), default=0)
    side = _image_side(mmproj)
    if _projector_type(mmproj) == "lfm2":
        canvas = Lfm2Canvas(patch=_patch(mmproj), cell=_cell(mmproj))
        columns, rows = canvas.grid(width, height)
        return columns * rows if columns * rows > 1 else 0
    if _projector_type(mmproj) == "internvl":
        most = max(numbers(mmproj, "clip.vision.preproc_max_tiles"), default=USUAL_TILES)
        columns, rows = TileCanvas(side=side, max_tiles=min(most, MAX_TILES)).grid(width, height)
        return columns * rows if columns * rows > 1 else 0
    if _projector_type(mmproj) != "idefics3" or not longest or not side:
        return 0
    shortest = longest * min(width, height) // max(1, width, height)
    return -(-longest // side) * max(1, -(-shortest // side))


def _tile_side(mmproj: GGUFFile) -> int:
    is_lfm2 = _projector_type(mmproj) == "lfm2"
    return Lfm2Canvas(patch=1, cell=1).tile if is_lfm2 else _image_side(mmproj)


def _limits(mmproj: GGUFFile) -> tuple[int, int, int] | None:
    """Return the limits of a tower that takes images of any size, None for another."""
    kind = _projector_type(mmproj)
    if kind in _STRETCHED:
        read, side = _STRETCHED[kind]
        canvas = read(mmproj)
        return -(-canvas.least // canvas.cell**2), canvas.max_tokens, side
    return next((limits for name, limits in _DYNAMIC.items() if kind.startswith(name)), None)


def _projector_type(mmproj: GGUFFile) -> str:
    return header_text(mmproj, "clip.projector_type") or header_text(
        mmproj, "clip.vision.projector_type"
    )


def _patch(mmproj: GGUFFile) -> int:
    side = max(numbers(mmproj, "clip.vision.patch_size"), default=14) or 14
    return side * (gemma4_pool(mmproj) if _projector_type(mmproj) == _GEMMA4_UNIFIED else 1)


def _merge(mmproj: GGUFFile) -> int:
    if _projector_type(mmproj) == _GEMMA4_UNIFIED:
        return 1
    if _projector_type(mmproj) == _GEMMA4:
        return gemma4_pool(mmproj) or 1
    found = numbers(mmproj, "clip.vision.spatial_merge_size") or numbers(
        mmproj, "clip.vision.projector.scale_factor"
    )
    kind = _projector_type(mmproj)
    usual = 2 if kind.startswith(("granite4", *_STRETCHED)) else 4 if kind in _OF_FOUR else 1
    return max(found, default=usual) or 1


def _cell(mmproj: GGUFFile) -> int:
    return _patch(mmproj) * _merge(mmproj)


def _image_side(mmproj: GGUFFile) -> int:
    return max(numbers(mmproj, "clip.vision.image_size"), default=0)


def _vocabulary(text: GGUFFile, *, with_strings: bool) -> int:
    per_token = _TOKEN_BYTES + with_strings * _TOKEN_STRING_BYTES
    return (
        per_token * n_items(text, "tokenizer.ggml.tokens")
        + _MERGE_BYTES * n_items(text, "tokenizer.ggml.merges")
        + text.data_offset
    )
