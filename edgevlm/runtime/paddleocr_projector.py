"""What must hold of a PaddleOCR-VL projector before llama.cpp may see it.

Facts: tools/mtmd/models/paddleocr.cpp and clip.cpp (`PROJECTOR_TYPE_PADDLEOCR`). A table that is
no square of float32 rows, heads that do not divide into rotary pairs of two directions, and
tensors of other shapes than the header says are assertions that end the process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT, VISION, biased_blocks, check_shapes, number
from edgevlm.runtime.stretch_canvas import StretchCanvas

_MERGE = 2
# Far above what models publish (3600 tokens); more would take memory without end.
_MOST_TOKENS = 1 << 16
_KERNEL, _POSITIONS = "v.patch_embd.weight", "v.position_embd.weight"
# Of a convolution and of an interpolation, which take nothing else.
_TYPES: Mapping[str, tuple[str, ...]] = {_KERNEL: ("F32", "F16"), _POSITIONS: ("F32",)}
Shape = tuple[int, ...]


def check_paddleocr(file: GGUFFile) -> StretchCanvas:
    """Check numbers and tensors of a projector of type `paddleocr`, whose numbers are positive.

    Returns:
        How its images are stretched.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    n_positions = shapes.get(_POSITIONS, (0,))[0]
    if width % (4 * n_heads) or math.isqrt(n_positions) ** 2 != n_positions:
        raise GGUFError(
            f"`{file.path}` has {width} channels in {n_heads} heads, with {n_positions} positions",
            hint=HINT,
        )
    check_shapes(file, {**_around(file, n_positions), **biased_blocks(file)})
    for tensor in file.tensors:
        types = _TYPES.get(tensor.name, (tensor.type,))
        if tensor.type not in types:
            raise GGUFError(
                f"`{file.path}` holds `{tensor.name}` as {tensor.type}: llama.cpp takes"
                f" {' or '.join(types)}",
                hint=HINT,
            )
    return read_paddleocr_canvas(file)


def _around(file: GGUFFile, n_positions: int) -> dict[str, Shape]:
    """Return what stands outside of the blocks."""
    width, n_out = number(file, "embedding_length"), number(file, "projection_dim")
    patch, merged = number(file, "patch_size"), _MERGE**2 * number(file, "embedding_length")
    norms = ("v.post_ln", "mm.input_norm")
    return {
        _KERNEL: (width, 3, patch, patch),
        "v.patch_embd.bias": (width,),
        _POSITIONS: (n_positions, width),
        **{f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")},
        "mm.1.weight": (merged, merged),
        "mm.1.bias": (merged,),
        "mm.2.weight": (n_out, merged),
        "mm.2.bias": (n_out,),
    }


def read_paddleocr_canvas(file: GGUFFile) -> StretchCanvas:
    """Return how images are stretched.

    Raises:
        GGUFError: there are no bounds, or such that no image can keep.
    """
    cell = number(file, "patch_size") * _MERGE
    least, most = (
        max(numbers(file, f"{VISION}image_{name}_pixels"), default=0) for name in ("min", "max")
    )
    if not 0 < least <= most or not cell**2 <= most <= _MOST_TOKENS * cell**2:
        raise GGUFError(
            f"`{file.path}` scales images to {least} to {most} pixels, in tokens of {cell} x"
            f" {cell}",
            hint=HINT,
        )
    return StretchCanvas(cell=cell, least=least, most=most, rounds=True)
