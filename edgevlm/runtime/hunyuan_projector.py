"""What must hold of HunYuanVL's files before llama.cpp may see them.

Facts: tools/mtmd/models/hunyuanvl.cpp and clip.cpp (`PROJECTOR_TYPE_HUNYUANVL`). A table that is no
square of float32 rows, which is copied as such, kernels of other types than a convolution takes,
and tensors of other shapes than the header says end the process, or worse.
"""

from __future__ import annotations

import math

from edgevlm.errors import GGUFError, ModelLoadError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers
from edgevlm.runtime.header import text as header_text
from edgevlm.runtime.projector_shapes import HINT, VISION, biased_blocks, check_shapes, number
from edgevlm.runtime.stretch_canvas import StretchCanvas

HUNYUAN = "hunyuanvl"
_MERGE, _N_POSITIONS = 2, 4
# Far above what models publish (4096 tokens); more would take memory without end.
_MOST_TOKENS = 1 << 16
_TABLE = "v.position_embd.weight"
_KERNELS = ("v.patch_embd.weight", "mm.0.weight", "mm.2.weight")
_VECTORS = ("v.image_newline", "mm.image_begin", "mm.image_end")
_TEXT_MODEL = "hunyuan_vl"
Shape = tuple[int, ...]


def check_hunyuan(file: GGUFFile, text: GGUFFile) -> StretchCanvas:
    """Check numbers and tensors of a projector of type `hunyuanvl`, whose numbers are positive.

    Args:
        file: the projector's.
        text: the text model's.

    Returns:
        How its images are stretched.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
        ModelLoadError: the text model has no positions of images.
    """
    _check_positions(text)
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    merge = number(file, "spatial_merge_size") or _MERGE
    n_positions = shapes.get(_TABLE, (0,))[0]
    if width % n_heads or merge != _MERGE or math.isqrt(n_positions) ** 2 != n_positions:
        raise GGUFError(
            f"`{file.path}` merges {merge} x {merge} patches of {width} channels in {n_heads}"
            f" heads, with {n_positions} positions",
            hint=HINT,
        )
    check_shapes(file, {**_around(file, n_positions), **biased_blocks(file)})
    for tensor in file.tensors:
        types = ("F32", "F16") if tensor.name in _KERNELS else (tensor.type,)
        types = ("F32",) if tensor.name in (_TABLE, *_VECTORS) else types
        if tensor.type not in types:
            raise GGUFError(
                f"`{file.path}` holds `{tensor.name}` as {tensor.type}: llama.cpp takes"
                f" {' or '.join(types)}",
                hint=HINT,
            )
    return read_hunyuan_canvas(file)


def _check_positions(text: GGUFFile) -> None:
    """Refuse a text model whose positions are not four (rotated pairs of three are none)."""
    sections = numbers(text, f"{text.architecture}.rope.dimension_sections")
    is_of_four = len(sections) == _N_POSITIONS and min(sections) > 0
    if text.architecture != _TEXT_MODEL or not is_of_four:
        raise ModelLoadError(
            f"`{text.path}` ({text.architecture}) has rotary sections {sections}: a HunYuanVL has"
            " four",
            hint="name the text model that was converted with this projector",
        )


def _around(file: GGUFFile, n_positions: int) -> dict[str, Shape]:
    """Return what stands outside of the blocks."""
    width, n_out = number(file, "embedding_length"), number(file, "projection_dim")
    patch = number(file, "patch_size")
    return {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.patch_embd.bias": (width,),
        _TABLE: (n_positions, width),
        "mm.pre_norm.weight": (width,),
        "mm.0.weight": (2 * width, width, _MERGE, _MERGE),
        "mm.0.bias": (2 * width,),
        "mm.2.weight": (4 * width, 2 * width, 1, 1),
        "mm.2.bias": (4 * width,),
        "v.image_newline": (4 * width,),
        "mm.model.fc.weight": (n_out, 4 * width),
        "mm.model.fc.bias": (n_out,),
        "mm.image_begin": (n_out,),
        "mm.image_end": (n_out,),
        "mm.post_norm.weight": (n_out,),
    }


def copied_table_n_bytes(file: GGUFFile) -> int:
    """Return what libmtmd's copy of the position table takes; 0 for another type of projector."""
    if header_text(file, "clip.projector_type") != HUNYUAN:
        return 0
    return next((tensor.n_bytes for tensor in file.tensors if tensor.name == _TABLE), 0)


def read_hunyuan_canvas(file: GGUFFile) -> StretchCanvas:
    """Return how images are stretched.

    Raises:
        GGUFError: there are no bounds, or such that no image can keep.
    """
    cell = number(file, "patch_size") * _MERGE
    least, most = (
        max(numbers(file, f"{VISION}image_{name}_pixels"), default=0) for name in ("min", "max")
    )
    if not cell**2 <= least <= most or most > _MOST_TOKENS * cell**2:
        raise GGUFError(
            f"`{file.path}` scales images to {least} to {most} pixels, in tokens of {cell} x"
            f" {cell}",
            hint=HINT,
        )
    return StretchCanvas(cell=cell, least=least, most=most, widens=False)
