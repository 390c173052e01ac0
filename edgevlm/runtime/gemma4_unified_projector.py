"""What must hold of a projector of Gemma 4 without towers before llama.cpp may see it.

Facts: tools/mtmd/models/gemma4uv.cpp and clip.cpp (`PROJECTOR_TYPE_GEMMA4UV`). A missing tensor,
one of another shape, and a position beyond the table end the process.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.gemma4_canvas import Gemma4Canvas
from edgevlm.runtime.gemma4_projector import pool, read_canvas
from edgevlm.runtime.projector_shapes import HINT, check_shapes, number
from edgevlm.runtime.prompt import ImageSpan

GEMMA4_UNIFIED = "gemma4uv"
_NORMS = ("weight", "bias")


def check_gemma4_unified(file: GGUFFile) -> Gemma4Canvas:
    """Check numbers and tensors of a projector of type `gemma4uv`.

    Returns:
        How its images are stretched.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    for key in ("block_count", "attention.head_count"):
        found = number(file, key)
        if found:
            raise GGUFError(
                f"`{file.path}` has clip.vision.{key} = {found}, and its graph has no tower",
                hint=HINT,
            )
    width, side = number(file, "embedding_length"), number(file, "patch_size") * pool(file)
    n_values = 3 * side * side
    norms = {1: n_values, 2: width, 3: width}
    check_shapes(
        file,
        {
            "v.patch_embd.weight": (width, n_values),
            "v.patch_embd.bias": (width,),
            "v.position_embd.weight": (2, 0, width),
            "mm.input_projection.weight": (number(file, "projection_dim"), width),
            **{f"v.patch_norm.{n}.{kind}": (norms[n],) for n in norms for kind in _NORMS},
        },
    )
    canvas = read_canvas(file)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    n_positions = tensors["v.position_embd.weight"].shape[1]
    if n_positions < canvas.max_tokens:
        raise GGUFError(
            f"`{file.path}` has {n_positions} positions, and images of up to {canvas.max_tokens}"
            " tokens in a row",
            hint=HINT,
        )
    return canvas


def gemma4_unified_span(file: GGUFFile, span: ImageSpan) -> ImageSpan:
    """Return how images are written, with what this projector's file says of them.

    Raises:
        GGUFError: see `check_gemma4_unified`.
    """
    canvas = check_gemma4_unified(file)
    # Visual tokens see each other both ways, whatever the width.
    return replace(span, canvas=canvas, max_tokens=canvas.max_tokens, n_whole=canvas.max_tokens)
