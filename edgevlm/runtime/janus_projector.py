"""What must hold of a projector of Janus-Pro or DeepSeek-VL before llama.cpp may see it.

Facts: tools/mtmd/models/siglip.cpp and clip.cpp (`PROJECTOR_TYPE_JANUS_PRO`). What stands around an
image in a prompt from transformers' `JanusProcessor` and `DeepseekVLProcessor`; libmtmd writes
nothing there.
"""

from __future__ import annotations

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.projector_shapes import HINT, blocks, check_shapes, number

_AROUND = ("<begin_of_image>", "<end_of_image>")
_BLOCK = ("attn_q", "attn_k", "attn_v", "attn_out")


def check_janus(file: GGUFFile) -> None:
    """Check numbers and tensors of a projector of type `janus_pro`, whose numbers are positive.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    width = number(file, "embedding_length")
    side, patch = number(file, "image_size"), number(file, "patch_size")
    n_ff, n_out = number(file, "feed_forward_length"), number(file, "projection_dim")
    if side < patch:
        raise GGUFError(
            f"`{file.path}` has images of {side} pixels in patches of {patch}", hint=HINT
        )
    wanted: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": ((side // patch) ** 2, width),
        "mm.0.weight": (n_out, width),
        "mm.0.bias": (n_out,),
        "mm.1.weight": (n_out, n_out),
        "mm.1.bias": (n_out,),
    }
    layers = {name: (width, width) for name in _BLOCK}
    layers |= {"ffn_up": (n_ff, width), "ffn_down": (width, n_ff)}
    for block in blocks(file):
        wanted |= {f"v.blk.{block}.{name}.weight": shape for name, shape in layers.items()}
        wanted |= {f"v.blk.{block}.{name}.weight": (width,) for name in ("ln1", "ln2")}
    check_shapes(file, wanted)


def around_image(text: GGUFFile) -> tuple[str, str]:
    """Return what a prompt has before and after an image: Janus-Pro's tokens, where it has them."""
    entry = text.metadata.get("tokenizer.ggml.tokens")
    tokens = entry.value if entry is not None else None
    known = set(tokens) if isinstance(tokens, list) else set[object]()
    return _AROUND if known.issuperset(_AROUND) else ("", "")
