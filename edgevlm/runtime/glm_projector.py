"""What must hold of a GLM-4.1V or GLM-OCR projector before llama.cpp may see it.

Facts: tools/mtmd/models/glm4v.cpp and clip.cpp (`PROJECTOR_TYPE_GLM4V`). Patches without a bias, a
class token, heads that do not divide into rotary pairs of two directions, and tensors of other
shapes than the header says are assertions that end the process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgevlm.errors import GGUFError, ModelLoadError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT, VISION, blocks, check_shapes, number
from edgevlm.runtime.stretch_canvas import StretchCanvas

# What libmtmd sets for files that say nothing, in visual tokens.
_LEAST, _MOST = 8, 4096
# Far above what models publish (6144); more would take memory without end.
_MOST_OF_ALL = 1 << 16
_MERGE = 2
_KERNEL_TYPES = ("F32", "F16")
_POSITIONS = "v.position_embd"
_TEXT_MODELS = ("glm4", "glm4moe")
Shape = tuple[int, ...]


def check_glm(file: GGUFFile, text: GGUFFile) -> StretchCanvas:
    """Check numbers and tensors of a projector of type `glm4v`, whose numbers are positive.

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
    types = {tensor.name: tensor.type for tensor in file.tensors}
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    merge = number(file, "spatial_merge_size") or _MERGE
    n_positions = shapes.get(f"{_POSITIONS}.weight", (1,))[0]
    if width % (4 * n_heads) or merge != _MERGE or math.isqrt(n_positions) ** 2 != n_positions:
        raise GGUFError(
            f"`{file.path}` merges {merge} x {merge} patches of {width} channels in {n_heads}"
            f" heads, with {n_positions} positions",
            hint=HINT,
        )
    if "v.class_embd" in shapes:
        raise GGUFError(f"`{file.path}` has a class token, which llama.cpp refuses", hint=HINT)
    patch = number(file, "patch_size")
    kernels: dict[str, tuple[int, ...]] = {
        name: (width, 3, patch, patch) for name in ("v.patch_embd.weight", "v.patch_embd.weight.1")
    }
    kernels["mm.patch_merger.weight"] = (number(file, "projection_dim"), width, _MERGE, _MERGE)
    check_shapes(file, {**kernels, **_around(file, shapes), **_in_blocks(file, shapes)})
    for name in kernels:
        if types[name] not in _KERNEL_TYPES:
            raise GGUFError(
                f"`{file.path}` holds `{name}` as {types[name]}: llama.cpp's convolution takes"
                f" {' or '.join(_KERNEL_TYPES)}",
                hint=HINT,
            )
    return read_canvas(file)


def _check_positions(text: GGUFFile) -> None:
    """Refuse a text model of one row of positions (src/models/glm4.cpp ends the process).

    GLM-4 without a tower, and files of old converters, are such.
    """
    if text.architecture not in _TEXT_MODELS:
        return
    sections = numbers(text, f"{text.architecture}.rope.dimension_sections")
    if len(sections) < 2 or min(sections[:2]) <= 0:
        raise ModelLoadError(
            f"`{text.path}` has no positions of images: rope.dimension_sections is {sections}",
            hint="it is a text model alone, or of an old converter: convert its checkpoint again",
        )


def _around(file: GGUFFile, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return what stands outside of the blocks."""
    width, n_out = number(file, "embedding_length"), number(file, "projection_dim")
    n_merged = shapes.get("mm.up.weight", (0,))[0]
    weights: dict[str, Shape] = {
        "mm.model.fc": (n_out, n_out),
        "mm.post_norm": (n_out,),
        "mm.gate": (n_merged, n_out),
        "mm.up": (n_merged, n_out),
        "mm.down": (n_out, n_merged),
    }
    n_positions = shapes.get(f"{_POSITIONS}.weight", (0,))[0]
    at_will = {"v.norm_embd": (width,), "v.post_ln": (width,), _POSITIONS: (n_positions, width)}
    return {
        "v.patch_embd.bias": (width,),
        "mm.patch_merger.bias": (n_out,),
        **{f"{name}.weight": shape for name, shape in weights.items()},
        **_present(shapes, {**weights, **at_will}),
    }


def _in_blocks(file: GGUFFile, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return what stands in the blocks."""
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    n_ff = shapes.get("v.blk.0.ffn_up.weight", (0,))[0]
    weights: dict[str, Shape] = {
        "attn_qkv": (3 * width, width),
        "attn_out": (width, width),
        "ln1": (width,),
        "ln2": (width,),
        "ffn_gate": (n_ff, width),
        "ffn_up": (n_ff, width),
        "ffn_down": (width, n_ff),
    }
    at_will = {f"attn_{letter}_norm": (width // n_heads,) for letter in "qk"}
    wanted: dict[str, Shape] = {}
    for layer in blocks(file):
        prefix = f"v.blk.{layer}."
        wanted |= {f"{prefix}{name}.weight": shape for name, shape in weights.items()}
        every = {f"{prefix}{name}": shape for name, shape in {**weights, **at_will}.items()}
        wanted |= _present(shapes, every)
    return wanted


def _present(shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of those weights and of their biases that there are."""
    both = {f"{name}.weight": shape for name, shape in weights.items()}
    both |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    return {name: shape for name, shape in both.items() if name in shapes}


def read_canvas(file: GGUFFile) -> StretchCanvas:
    """Return how images are stretched.

    Raises:
        GGUFError: bounds that no image can keep.
    """
    cell = number(file, "patch_size") * _MERGE
    usual = {"min": _LEAST * cell**2, "max": _MOST * cell**2}
    least, most = (
        max(numbers(file, f"{VISION}image_{name}_pixels"), default=pixels)
        for name, pixels in usual.items()
    )
    if not 0 < least <= most or most > _MOST_OF_ALL * cell**2:
        raise GGUFError(
            f"`{file.path}` scales images to {least} to {most} pixels, in tokens of {cell} x"
            f" {cell}",
            hint=HINT,
        )
    # libmtmd makes smaller ones larger.
    return StretchCanvas(cell=cell, least=max(least, usual["min"]), most=max(most, usual["min"]))


def feed_forward_width(file: GGUFFile) -> int:
    """Return the channels per patch of the widest feed-forward network.

    The header's own number is the merger's in GLM-4.1V, which gets a quarter of the patches.
    """
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    block, merger = (
        shapes.get(name, (0,))[0] for name in ("v.blk.0.ffn_up.weight", "mm.up.weight")
    )
    return max(block, merger // _MERGE**2)
