"""What must hold of a MiniCPM-V 4.6 projector before llama.cpp may see it.

Facts: tools/mtmd/models/minicpmv.cpp and clip.cpp. Patches that do not divide into those that are
merged, a table of other than 70 x 70 positions, and tensors of other shapes than the header says
are assertions that end the process.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.frame_projector import read_markers
from edgevlm.runtime.projector_shapes import HINT, blocks, check_shapes, number
from edgevlm.runtime.slice_canvas import SliceCanvas

_N_POSITIONS = 70 * 70
_MAX_SIDE = 4096
_MERGER_UP = "v.vit_merger.ds_ffn_up.weight"


def check_minicpm(file: GGUFFile) -> SliceCanvas:
    """Check numbers and tensors of a projector of type `minicpmv4_6`, whose numbers are positive.

    Returns:
        How its images are cut.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    n_ff, n_out = number(file, "feed_forward_length"), number(file, "projection_dim")
    patch, side = number(file, "patch_size"), number(file, "image_size")
    scale = number(file, "projector.scale_factor") or 4
    if width % n_heads or scale not in (2, 4) or side % (patch * scale) or side > _MAX_SIDE:
        raise GGUFError(
            f"`{file.path}` merges {scale} x {scale} patches of {patch} pixels in slices of {side},"
            f" of {width} channels in {n_heads} heads",
            hint=HINT,
        )
    matrices = {name: (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
    layers = {**matrices, "ffn_up": (n_ff, width), "ffn_down": (width, n_ff)}
    layers |= {"ln1": (width,), "ln2": (width,)}
    wanted: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": (_N_POSITIONS, width),
        "mm.input_norm.weight": (4 * width,),
        "mm.up.weight": (4 * width, 4 * width),
        "mm.down.weight": (n_out, 4 * width),
    }
    for block in blocks(file):
        wanted |= {f"v.blk.{block}.{name}.weight": shape for name, shape in layers.items()}
    if scale == 4:
        inner = {**matrices, "ln1": (width,), "ds_ln": (4 * width,)}
        # Four times `n_ff`, unless zeros were added to either: it is in no key of its own.
        n_inner = next((t.shape[0] for t in file.tensors if t.name == _MERGER_UP), 4 * n_ff)
        inner |= {"ds_ffn_up": (n_inner, 4 * width), "ds_ffn_down": (width, n_inner)}
        wanted |= {f"v.vit_merger.{name}.weight": shape for name, shape in inner.items()}
    check_shapes(file, wanted)
    return SliceCanvas(side=side, cell=patch * scale, markers=read_markers(file))
