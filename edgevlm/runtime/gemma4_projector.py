"""What must hold of a Gemma 4 projector and its text model before llama.cpp may see them.

Facts: tools/mtmd/models/gemma4v.cpp and clip.cpp (`PROJECTOR_TYPE_GEMMA4V`), src/llama-model.cpp
(`layer_reuse_cb`). A position beyond the table, heads that do not divide into rotary pairs of two
directions, and tensors of other shapes than the header says are assertions that end the process.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.gemma4_canvas import Gemma4Canvas
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT, VISION, blocks, check_shapes, number
from edgevlm.runtime.prompt import ImageSpan

_USUAL_POOL, _USUAL_TOKENS = 3, 280
# What libmtmd scales images to at least and at most, in visual tokens.
LEAST_TOKENS, MOST_TOKENS = 70, 1120
# Widths of E2B and E4B, whose visual tokens look back only (tools/mtmd/mtmd.cpp).
_CAUSAL_WIDTHS = (1536, 2560)
_KERNEL_TYPES = ("F32", "F16")
Shape = tuple[int, ...]


def check_gemma4(file: GGUFFile) -> Gemma4Canvas:
    """Check numbers and tensors of a projector of type `gemma4v`, whose numbers are positive.

    Returns:
        How its images are stretched.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    tensors = {tensor.name: tensor for tensor in file.tensors}
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    patch = number(file, "patch_size")
    if width % (4 * n_heads):
        raise GGUFError(f"`{file.path}` has {width} channels in {n_heads} heads", hint=HINT)
    wanted: dict[str, Shape] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": (2, 0, width),
        "mm.input_projection.weight": (number(file, "projection_dim"), width),
        **_in_blocks(file),
    }
    both = ("v.std_bias", "v.std_scale")
    wanted |= dict.fromkeys([name for name in both if name in tensors], (width,))
    check_shapes(file, wanted)
    for name in ("v.patch_embd.weight", "v.position_embd.weight"):
        if tensors[name].type not in _KERNEL_TYPES:
            raise GGUFError(
                f"`{file.path}` holds `{name}` as {tensors[name].type}: llama.cpp takes"
                f" {' or '.join(_KERNEL_TYPES)}",
                hint=HINT,
            )
    canvas = read_canvas(file)
    n_positions = tensors["v.position_embd.weight"].shape[1]
    # The longest row of patches that an image can have.
    if n_positions < canvas.max_tokens * pool(file):
        raise GGUFError(
            f"`{file.path}` has {n_positions} positions, and images of up to"
            f" {canvas.max_tokens * pool(file)} patches in a row",
            hint=HINT,
        )
    return canvas


def _in_blocks(file: GGUFFile) -> dict[str, Shape]:
    width, n_ff = number(file, "embedding_length"), number(file, "feed_forward_length")
    head = width // number(file, "attention.head_count")
    square, down = (width, width), (width, n_ff)
    weights: dict[str, Shape] = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), square),
        **dict.fromkeys(("ffn_gate", "ffn_up"), down[::-1]),
        **dict.fromkeys(("ln1", "ln2", "attn_post_norm", "ffn_post_norm"), (width,)),
        **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (head,)),
        "ffn_down": down,
    }
    return {
        f"v.blk.{layer}.{name}.weight": shape
        for layer in blocks(file)
        for name, shape in weights.items()
    }


def pool(file: GGUFFile) -> int:
    """Return how many patches a side become one visual token."""
    return max(numbers(file, f"{VISION}projector.scale_factor"), default=_USUAL_POOL)


def read_canvas(file: GGUFFile) -> Gemma4Canvas:
    """Return how images are stretched.

    Raises:
        GGUFError: fewer or more visual tokens than llama.cpp scales an image to.
    """
    cell = number(file, "patch_size") * pool(file)
    usual = _USUAL_TOKENS * cell**2
    most = max(numbers(file, f"{VISION}image_max_pixels"), default=usual)
    n_tokens = most // cell**2 if cell > 0 else 0
    if not LEAST_TOKENS <= n_tokens <= MOST_TOKENS:
        raise GGUFError(
            f"`{file.path}` scales images to {most} pixels, in tokens of {cell} x {cell}: llama.cpp"
            f" takes {LEAST_TOKENS} to {MOST_TOKENS} tokens",
            hint=HINT,
        )
    return Gemma4Canvas(cell=cell, max_tokens=n_tokens)


def gemma4_span(file: GGUFFile, span: ImageSpan) -> ImageSpan:
    """Return how images are written, with what this projector's file says of them.

    Raises:
        GGUFError: see `check_gemma4`.
    """
    canvas = check_gemma4(file)
    looks_back = number(file, "projection_dim") in _CAUSAL_WIDTHS
    n_tokens = canvas.max_tokens
    return replace(span, canvas=canvas, max_tokens=n_tokens, n_whole=0 if looks_back else n_tokens)


def check_gemma4_text(file: GGUFFile) -> None:
    """Check that a text model of two layers at least makes keys of its own.

    Raises:
        GGUFError: fewer do; llama.cpp would end the process.
    """
    if file.architecture != "gemma4":
        return
    n_layers = max(numbers(file, "gemma4.block_count"), default=0)
    n_shared = max(numbers(file, "gemma4.attention.shared_kv_layers"), default=0)
    if n_layers - n_shared < 2:
        raise GGUFError(
            f"`{file.path}` shares keys in {n_shared} of {n_layers} layers: llama.cpp needs two"
            " that make their own",
            hint=HINT,
        )
