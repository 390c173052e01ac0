"""What must hold of a LLaVA projector before llama.cpp may see it.

tools/mtmd/models/llava.cpp takes these tensors and their sizes for granted: one that is missing or
of another shape is no error message but the end of the process, at the first image.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.anyres_canvas import AnyresCanvas
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import (
    HINT,
    VISION,
    blocks,
    check_shapes,
    number,
    read_vector,
)

_BLOCK = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")
# Of the vector that ends a row: llama.cpp's name, and that of its first converters.
_NEWLINES = ("v.image_newline", "model.image_newline")
_MAX_TILES = 144
# Ours: libmtmd joins no tiles.
_SHRUNK = "edgevlm.anyres_max_tiles"


def check_mlp(file: GGUFFile) -> AnyresCanvas | None:
    """Check the tensors of a projector of type `mlp`, whose header's numbers are positive.

    Returns:
        How its images are cut, None where they are not.

    Raises:
        GGUFError: one is missing or has another shape than the header says.
    """
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    width, side, patch = (
        number(file, key) for key in ("embedding_length", "image_size", "patch_size")
    )
    n_heads = number(file, "attention.head_count")
    if side < patch or width % n_heads:
        raise GGUFError(
            f"`{file.path}` has images of {side} pixels in patches of {patch}, and {width} channels"
            f" in {n_heads} heads",
            hint=HINT,
        )
    n_positions = (side // patch) ** 2 + ("v.class_embd" in shapes)
    n_out = number(file, "projection_dim")
    wanted: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": (n_positions, width),
        **{f"v.blk.{block}.{name}.weight": () for block in blocks(file) for name in _BLOCK},
        "mm.0.weight": (0, width * _n_states(file)),
        "mm.0.bias": (),
    }
    if "v.class_embd" in shapes:
        wanted["v.class_embd"] = (width,)
    if "mm.3.weight" not in shapes:
        wanted["mm.2.weight"] = (n_out, shapes.get("mm.0.weight", (0,))[0])
        wanted["mm.2.bias"] = (n_out,)
    wanted |= {name: (n_out,) for name in _NEWLINES if name in shapes}
    check_shapes(file, wanted)
    return read_canvas(file)


def read_canvas(file: GGUFFile) -> AnyresCanvas | None:
    """Return how LLaVA-NeXT's images are cut, None for a projector of whole images.

    Raises:
        GGUFError: grids that are none.
    """
    sizes = numbers(file, f"{VISION}image_grid_pinpoints")
    names = {tensor.name for tensor in file.tensors}
    newline = next((name for name in _NEWLINES if name in names), None)
    side, patch = number(file, "image_size"), number(file, "patch_size")
    if not sizes or not side or not patch:
        return None
    grids = tuple(
        (width // side, height // side)
        for width, height in zip(sizes[::2], sizes[1::2], strict=False)
    )
    if (
        len(sizes) % 2
        or any(size <= 0 or size % side for size in sizes)
        or any(columns * rows > _MAX_TILES for columns, rows in grids)
    ):
        raise GGUFError(
            f"`{file.path}` scales images into {sizes[:8]} pixels, in tiles of {side}", hint=HINT
        )
    if newline is None:
        return None
    return AnyresCanvas(
        side=side,
        cells=side // patch,
        grids=grids,
        newline=read_vector(file, newline),
        max_tiles=_max_tiles(file),
    )


def _max_tiles(file: GGUFFile) -> int:
    """Return how many tiles LLaVA-OneVision's joined pictures are shrunk to, 0 for any number."""
    found = numbers(file, _SHRUNK)
    if any(not 0 < value <= _MAX_TILES for value in found):
        raise GGUFError(f"`{file.path}` shrinks an image to {found} tiles", hint=HINT)
    return max(found, default=0)


def _n_states(file: GGUFFile) -> int:
    """Return how many states of the tower stand side by side before the projector."""
    entry = file.metadata.get(f"{VISION}feature_layer")
    values = entry.head(entry.n_items) if entry is not None and entry.is_array else []
    layers = {value for value in values if isinstance(value, int) and value >= 0}
    if layers and max(layers) > number(file, "block_count"):
        raise GGUFError(
            f"`{file.path}` reads block {max(layers)} of {number(file, 'block_count')}",
            hint=HINT,
        )
    return max(1, len(layers))
