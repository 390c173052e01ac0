"""What must hold of LFM2-VL's files before llama.cpp may see them.

Facts: tools/mtmd/models/siglip.cpp, mtmd-image.h and clip.cpp (`PROJECTOR_TYPE_LFM2`), and
src/models/lfm2.cpp. Patches that are not merged, a position table that is no square, a kernel of
one value, and tensors of other shapes than the header says are assertions that end the process.
"""

from __future__ import annotations

import math

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers
from edgevlm.runtime.lfm2_canvas import Lfm2Canvas
from edgevlm.runtime.projector_shapes import HINT, blocks, check_shapes, number

_TILE = 512
_MAX_KERNEL = 64


def check_lfm2(file: GGUFFile) -> Lfm2Canvas:
    """Check numbers and tensors of a projector of type `lfm2`, whose numbers are positive.

    Returns:
        How its images are cut.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    n_ff, n_out = number(file, "feed_forward_length"), number(file, "projection_dim")
    patch, scale = number(file, "patch_size"), number(file, "projector.scale_factor")
    if width % n_heads or scale < 2 or _TILE % (patch * scale):
        raise GGUFError(
            f"`{file.path}` merges {scale} x {scale} patches of {patch} pixels, of {width} channels"
            f" in {n_heads} heads; tiles have {_TILE} pixels a side",
            hint=HINT,
        )
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    n_positions = shapes.get("v.position_embd.weight", (0,))[0]
    if math.isqrt(n_positions) ** 2 != n_positions:
        raise GGUFError(f"`{file.path}` has {n_positions} positions, no square number", hint=HINT)
    matrices = {name: (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
    matrices |= {"ffn_up": (n_ff, width), "ffn_down": (width, n_ff)}
    rows = {name: (width,) for name in ("ln1", "ln2")}
    wanted: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": (n_positions, width),
        "mm.1.weight": (0, width * scale**2),
        "mm.2.weight": (n_out, shapes.get("mm.1.weight", (0,))[0]),
    }
    for block in blocks(file):
        for name, shape in {**matrices, **rows}.items():
            wanted[f"v.blk.{block}.{name}.weight"] = shape
    check_shapes(file, wanted)
    return Lfm2Canvas(patch=patch, cell=patch * scale)


def check_short_convolution(file: GGUFFile) -> None:
    """Check the layers of an LFM2 text model: some of attention, some of convolution.

    A kernel keeps at least one value between two tokens; a memory of one kind alone is an assertion
    that ends the process.

    Raises:
        GGUFError: they are otherwise.
    """
    if file.architecture != "lfm2":
        return
    kernel = max(numbers(file, "lfm2.shortconv.l_cache"), default=0)
    if not 1 < kernel <= _MAX_KERNEL:
        raise GGUFError(
            f"`{file.path}` has lfm2.shortconv.l_cache = {kernel}, 2 to {_MAX_KERNEL} can be"
            " computed",
            hint=HINT,
        )
    heads = numbers(file, "lfm2.attention.head_count_kv")
    if not any(heads) or all(heads):
        raise GGUFError(
            f"`{file.path}` has lfm2.attention.head_count_kv = {heads[:8]}: layers of convolution"
            " have 0, and llama.cpp computes none without both kinds",
            hint=HINT,
        )
