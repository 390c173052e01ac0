"""What must hold of a LLaVA projector before llama.cpp may see it.

tools/mtmd/models/llava.cpp takes these tensors and their sizes for granted: one that is missing or
of another shape is no error message but the end of the process, at the first image.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.projector_shapes import HINT, VISION, blocks, check_shapes, number

_BLOCK = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")


def check_mlp(file: GGUFFile) -> None:
    """Check the tensors of a projector of type `mlp`, whose header's numbers are positive.

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
    check_shapes(file, wanted)


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
