"""What must hold of a Pixtral projector before llama.cpp may see it.

Facts: tools/mtmd/models/pixtral.cpp and clip.cpp; heads that cannot be halved twice, and patches
that are merged otherwise than the matrix for it wants, are assertions that end the process.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.longest_canvas import LongestCanvas
from edgevlm.runtime.projector_shapes import (
    HINT,
    VISION,
    blocks,
    check_shapes,
    number,
    read_vector,
)

_BLOCK = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")
_MAX_MERGED = 16
_MAX_LONGEST = 8192
# Of libmtmd, for an image (clip.cpp, `set_limit_image_tokens`).
MAX_LIGHTON_TOKENS = 4096
_ROW_END = "v.token_embd.img_break"


def check_pixtral(file: GGUFFile) -> bytes:
    """Check numbers and tensors of a projector whose header's numbers are positive.

    Returns:
        The float32 values of what stands between the rows of an image.

    Raises:
        GGUFError: a tensor is missing or has another shape than the header says.
    """
    _check(file, ends_rows=True)
    return read_vector(file, _ROW_END)


def check_lighton(file: GGUFFile) -> LongestCanvas:
    """Check a projector of type `lightonocr`, the same tower without ends of rows.

    Returns:
        How its images are scaled.

    Raises:
        GGUFError: as `check_pixtral`, or a size of images that is absurd.
    """
    _check(file, ends_rows=False)
    return read_longest_canvas(file)


def read_longest_canvas(file: GGUFFile) -> LongestCanvas:
    """Return how images are scaled.

    Raises:
        GGUFError: a size that is absurd.
    """
    cell = number(file, "patch_size") * (number(file, "spatial_merge_size") or 1)
    key = "preproc_image_size"
    longest = number(file, key if f"{VISION}{key}" in file.metadata else "image_size")
    if not cell <= longest <= _MAX_LONGEST or (longest // cell) ** 2 > MAX_LIGHTON_TOKENS:
        raise GGUFError(
            f"`{file.path}` scales images to {longest} pixels, in tokens of {cell} x {cell}",
            hint=HINT,
        )
    return LongestCanvas(cell=cell, longest=longest)


def _check(file: GGUFFile, *, ends_rows: bool) -> None:
    names = {tensor.name for tensor in file.tensors}
    width, patch, n_heads = (
        number(file, key) for key in ("embedding_length", "patch_size", "attention.head_count")
    )
    n_out = number(file, "projection_dim")
    if width % n_heads or width // n_heads % 4:
        raise GGUFError(
            f"`{file.path}` has {width} channels in {n_heads} heads, each of which must be a"
            " multiple of 4",
            hint=HINT,
        )
    n_merged = number(file, "spatial_merge_size") or 1
    merges = "mm.patch_merger.weight" in names
    if n_merged > _MAX_MERGED or (n_merged > 1 and not merges):
        raise GGUFError(
            f"`{file.path}` has {VISION}spatial_merge_size {n_merged} without a matrix for it",
            hint=HINT,
        )
    wanted: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        **{f"v.blk.{block}.{name}.weight": () for block in blocks(file) for name in _BLOCK},
        "mm.1.weight": (n_out, width),
        "mm.2.weight": (n_out, n_out),
    }
    if ends_rows:
        wanted[_ROW_END] = (n_out,)
    if merges:
        wanted["mm.input_norm.weight"] = (width,)
        wanted["mm.patch_merger.weight"] = (width, width * n_merged**2)
    check_shapes(file, wanted)
