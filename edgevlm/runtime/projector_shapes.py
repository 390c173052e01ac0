"""Tensors and numbers of a projector, held against each other before llama.cpp may see it.

Graphs of tools/mtmd take tensors and their sizes for granted: one that is missing or of another
shape is no error message but the end of the process, at the first image.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile

VISION = "clip.vision."
HINT = "convert the model again"


def check_shapes(file: GGUFFile, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Check tensors by name and shape; a size of 0 is any size, an empty shape any shape.

    Raises:
        GGUFError: one is missing or has another shape.
    """
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    for name, shape in wanted.items():
        _check(file, name, shapes.get(name), shape)


def _check(
    file: GGUFFile, name: str, found: tuple[int, ...] | None, wanted: tuple[int, ...]
) -> None:
    if found is None:
        raise GGUFError(f"`{file.path}` has no tensor `{name}`", hint=HINT)
    pairs = zip(found, wanted, strict=False)
    if wanted and (len(found) != len(wanted) or any(size not in (0, n) for n, size in pairs)):
        raise GGUFError(
            f"`{file.path}`: tensor `{name}` has the shape {list(found)}, its header asks for"
            f" {list(wanted)}",
            hint=HINT,
        )


def blocks(file: GGUFFile) -> range:
    """Return the numbers of the blocks, as many as there can be."""
    return range(min(number(file, "block_count"), len(file.tensors)))


def number(file: GGUFFile, key: str) -> int:
    """Return a whole number of the vision part by its key, 0 when there is none."""
    entry = file.metadata.get(f"{VISION}{key}")
    value = entry.value if entry is not None and not entry.is_array else 0
    return value if isinstance(value, int) else 0


def read_vector(file: GGUFFile, name: str) -> bytes:
    """Return the float32 values of a tensor that the engine itself needs.

    Args:
        file: the projector's, which has it.
        name: of the tensor.

    Raises:
        GGUFError: it is of another type.
    """
    tensor = next(tensor for tensor in file.tensors if tensor.name == name)
    if tensor.type != "F32":
        raise GGUFError(f"`{file.path}` holds `{name}` as {tensor.type}, not F32", hint=HINT)
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset)
        return stream.read(tensor.n_bytes)


def biased_blocks(file: GGUFFile) -> dict[str, tuple[int, ...]]:
    """Return what stands in the blocks of a ViT with LayerNorm and biases: shapes by name.

    The feed-forward's width is that of its first matrix: it may be padded for blocks that do not
    divide the header's own number.
    """
    width = number(file, "embedding_length")
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    n_ff = shapes.get("v.blk.0.ffn_up.weight", (0,))[0]
    weights: dict[str, tuple[int, ...]] = {
        "attn_q": (width, width),
        "attn_k": (width, width),
        "attn_v": (width, width),
        "attn_out": (width, width),
        "ln1": (width,),
        "ln2": (width,),
        "ffn_up": (n_ff, width),
        "ffn_down": (width, n_ff),
    }
    wanted: dict[str, tuple[int, ...]] = {}
    for layer in blocks(file):
        for name, shape in weights.items():
            wanted[f"v.blk.{layer}.{name}.weight"] = shape
            wanted[f"v.blk.{layer}.{name}.bias"] = shape[:1]
    return wanted
