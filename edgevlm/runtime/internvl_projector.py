"""What must hold of an InternVL projector before llama.cpp may see it.

Facts: tools/mtmd/models/internvl.cpp and clip.cpp. No class token, no grid that an image could be
cut by, and tensors of other shapes than the header says are assertions that end the process.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.projector_shapes import HINT, VISION, blocks, check_shapes, number
from edgevlm.runtime.tile_canvas import MAX_TILES, USUAL_TILES, TileCanvas


def check_internvl(file: GGUFFile) -> TileCanvas:
    """Check numbers and tensors of a projector of type `internvl`, whose numbers are positive.

    Returns:
        How its images are stretched.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    _check_sides(file)
    names = {tensor.name for tensor in file.tensors}
    width, n_ff, n_out = (
        number(file, key) for key in ("embedding_length", "feed_forward_length", "projection_dim")
    )
    side, patch = number(file, "image_size"), number(file, "patch_size")
    matrices = {name: (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
    matrices |= {"ffn_up": (n_ff, width), "ffn_down": (width, n_ff)}
    rows = {name: (width,) for name in ("ln1", "ln2", "ls1", "ls2")}
    n_merged = width * number(file, "projector.scale_factor") ** 2
    wanted: dict[str, tuple[int, ...]] = {
        "v.class_embd": (1, 1, width),
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": (1, (side // patch) ** 2 + 1, width),
        "mm.model.mlp.0.weight": (n_merged,),
        "mm.model.mlp.1.weight": (n_out, n_merged),
        "mm.model.mlp.3.weight": (n_out, n_out),
    }
    for block in blocks(file):
        wanted |= {f"v.blk.{block}.{name}.weight": shape for name, shape in matrices.items()}
        scaled = {f"v.blk.{block}.{name}.weight": shape for name, shape in rows.items()}
        wanted |= {name: shape for name, shape in scaled.items() if name in names}
    check_shapes(file, wanted)
    return TileCanvas(side=side, max_tiles=_max_tiles(file))


def _check_sides(file: GGUFFile) -> None:
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    scale = number(file, "projector.scale_factor")
    side = number(file, "image_size") // number(file, "patch_size")
    if width % n_heads or not scale or not side or side % scale:
        raise GGUFError(
            f"`{file.path}` merges {scale} x {scale} of {side} x {side} patches, of {width}"
            f" channels in {n_heads} heads",
            hint=HINT,
        )


def _max_tiles(file: GGUFFile) -> int:
    least, most = (
        number(file, f"preproc_{name}_tiles")
        if f"{VISION}preproc_{name}_tiles" in file.metadata
        else usual
        for name, usual in (("min", 1), ("max", USUAL_TILES))
    )
    if least != 1 or not 1 <= most <= MAX_TILES:
        raise GGUFError(
            f"`{file.path}` cuts images into {least} to {most} tiles: 1 to {MAX_TILES} can be had",
            hint=HINT,
        )
    return most
