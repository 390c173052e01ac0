"""What must hold of a Granite 4 Vision projector before llama.cpp may see it.

Facts: tools/mtmd/models/granite4-vision.cpp, mtmd-image.cpp and src/models/granite.cpp. No grid to
scale an image into, windows that do not fill it, and streams that the text model does not take or
takes beyond the end of a row are assertions, or reads of memory that is not theirs.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError, ModelLoadError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT, VISION, blocks, check_shapes, number

_TOWER = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")
_SQUARE = ("q", "k", "v", "out")
_MAX_GRID, _MAX_STREAMS, _HEAD_DIM, _MAX_OFFSET = 64, 64, 64, 3


def check_granite4(file: GGUFFile, text: GGUFFile) -> None:
    """Check numbers and tensors of a projector of type `granite4_vision`.

    Args:
        file: the projector's header, whose numbers are positive.
        text: the text model's.

    Raises:
        GGUFError: a tensor is missing or has another shape than the header says.
        ModelLoadError: the text model takes other streams.
    """
    layers = numbers(file, f"{VISION}feature_layer")
    offsets = numbers(file, f"{VISION}projector.spatial_offsets")
    n_blocks = number(file, "block_count")
    if (
        not 0 < len(layers) <= _MAX_STREAMS
        or len(offsets) != len(layers)
        or any(not 0 <= layer < n_blocks for layer in layers)
        or any(not -1 <= offset <= _MAX_OFFSET for offset in offsets)
    ):
        raise GGUFError(f"`{file.path}` reads layers {layers} at offsets {offsets}", hint=HINT)
    _check_sides(file)
    _check_streams(file, text, len(layers))
    check_shapes(file, _wanted(file, len(layers)))


def n_tiles(file: GGUFFile, width: int, height: int) -> int:
    """Return the tiles that an image is cut into, the overview not among them.

    The grid is the one that keeps the most of an image's pixels, of these the smallest
    (tools/mtmd/mtmd-image.cpp, `select_best_resolution`).
    """
    flat, side = numbers(file, f"{VISION}image_grid_pinpoints"), number(file, "image_size")
    best = (-1, 0, 0)
    for columns, rows in zip(flat[::2], flat[1::2], strict=False):
        scale = min(columns / max(1, width), rows / max(1, height))
        kept = min(int(width * scale) * int(height * scale), width * height)
        tiles = columns * rows // max(1, side) ** 2
        best = max(best, (kept, kept - columns * rows, tiles))
    return best[2]


def _check_sides(file: GGUFFile) -> None:
    side, patch, width = (
        number(file, key) for key in ("image_size", "patch_size", "embedding_length")
    )
    query, window = (number(file, f"projector.{key}_side") for key in ("query", "window"))
    n_patches = side // patch
    if not query or window != 2 * query or not n_patches or n_patches % window:
        raise GGUFError(
            f"`{file.path}` has windows of {window} x {window} patches that become {query} x"
            f" {query}, in {n_patches} x {n_patches}",
            hint=HINT,
        )
    n_heads = number(file, "attention.head_count")
    if width % n_heads or width % _HEAD_DIM:
        raise GGUFError(f"`{file.path}` has {width} channels in {n_heads} heads", hint=HINT)
    grids = numbers(file, f"{VISION}image_grid_pinpoints")
    if not grids or len(grids) % 2 or any(not 0 < n <= _MAX_GRID * side or n % side for n in grids):
        raise GGUFError(f"`{file.path}` scales images into {grids[:8]} pixels", hint=HINT)


def _check_streams(file: GGUFFile, text: GGUFFile, n_streams: int) -> None:
    mapping = numbers(text, f"{text.architecture}.deepstack_mapping")
    n_layers = max(numbers(text, f"{text.architecture}.block_count"), default=0)
    taken = sorted(stream for stream in mapping if stream >= 0)
    if len(mapping) == n_layers and mapping[:1] == [-1] and taken == list(range(1, n_streams)):
        return
    raise ModelLoadError(
        f"`{file.path}` gives {n_streams} streams of features, the text model `{text.path}` takes"
        f" {len(taken) + 1}: it belongs to another model",
        hint="use the mmproj that was converted with this model",
    )


def _wanted(file: GGUFFile, n_streams: int) -> dict[str, tuple[int, ...]]:
    width, n_out, patch = (
        number(file, key) for key in ("embedding_length", "projection_dim", "patch_size")
    )
    query, window = (number(file, f"projector.{key}_side") for key in ("query", "window"))
    n_patches = (number(file, "image_size") // patch) ** 2
    wanted: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": (n_patches, width),
        "v.image_newline": (n_out,),
        **{f"v.blk.{block}.{name}.weight": () for block in blocks(file) for name in _TOWER},
    }
    for stream in range(n_streams):
        prefix = f"v.proj_blk.{stream}."
        for kind in ("self", "cross"):
            names = [f"{kind}_attn_{letter}" for letter in _SQUARE]
            wanted |= {f"{prefix}{name}.weight": (width, width) for name in names}
            wanted[f"{prefix}{kind}_attn_norm.weight"] = (width,)
        wanted |= {
            f"{prefix}img_pos": (1, window**2, width),
            f"{prefix}query": (1, query**2, width),
            f"{prefix}norm.weight": (width,),
            f"{prefix}post_norm.weight": (width,),
            f"{prefix}ffn_norm.weight": (width,),
            f"{prefix}ffn_up.weight": (0, width),
            f"{prefix}ffn_down.weight": (width, 0),
            f"{prefix}linear.weight": (n_out, width),
        }
    return wanted
