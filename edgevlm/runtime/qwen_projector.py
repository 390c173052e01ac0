"""The towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: shapes that their graphs take for granted.

A tensor of another shape is an assertion of ggml, at the first image; one that is missing is an
error message of libmtmd, or a null pointer. Facts: tools/mtmd/models/qwen2vl.cpp and qwen3vl.cpp as
vendored in llama-cpp-python 0.3.36, which merge 2 x 2 patches whatever the file says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT, VISION, check_shapes, number
from edgevlm.runtime.prompt import ImageSpan
from edgevlm.runtime.stretch_canvas import StretchCanvas

QWEN_KINDS = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger")
_MERGE = 2
_MERGED = _MERGE**2
# What libmtmd sets, whatever the file says, in visual tokens.
_LEAST, _MOST = 8, 4096
# Four times what models publish (16384); more would take memory without end.
_MOST_OF_ALL = 1 << 16
# Half of the window's 112 pixels.
_MAX_WINDOW_PATCH = 56
_BLOCK = re.compile(r"v\.(blk|deepstack)\.\d+\.")
_PARTS = ("attn_out", "ffn_up", "ffn_down", "ln1", "ln2")
_DEEPSTACK = ("norm", "fc1", "fc2")
_FEED_FORWARD = re.compile(r"v\.blk\.\d+\.ffn_(up|gate|down)\.(weight|bias)")

# Qwen2.5-Omni's names of what libmtmd writes around an image under Qwen2.5-VL's.
_OMNI = ("<|vision_bos|>", "<|vision_eos|>")


def qwen_span(text: GGUFFile, span: ImageSpan) -> ImageSpan:
    """Return how an image is written over the vocabulary of a text model.

    Args:
        text: the text model's header.
        span: of the projector's type.
    """
    tokens = text.metadata["tokenizer.ggml.tokens"].value
    known = set(tokens) if isinstance(tokens, list) else set[object]()
    if not known.issuperset(_OMNI) or known & set(span.runtime_tokens):
        return span
    return replace(
        span,
        template="<|vision_bos|><|IMAGE|><|vision_eos|>",
        runtime_tokens=_OMNI,
        around=_OMNI,
        frame=("<|vision_start|>", "<|vision_end|>"),
    )


def check_qwen(file: GGUFFile, kind: str) -> StretchCanvas:
    """Check how many patches become one token, and the tensors that are there.

    Args:
        file: the projector's header.
        kind: one of QWEN_KINDS.

    Returns:
        How its images are stretched.

    Raises:
        GGUFError: a tensor is missing, or has another shape than the header says; bounds that no
            image can keep.
    """
    merge = f"{VISION}spatial_merge_size"
    if merge in file.metadata and number(file, "spatial_merge_size") ** 2 != _MERGED:
        raise GGUFError(
            f"`{file.path}` has {merge} {number(file, 'spatial_merge_size')}, llama.cpp's graph"
            " merges 2 x 2 patches",
            hint=HINT,
        )
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    wanted = {name: _wanted_shape(file, name) for name in shapes}
    check_shapes(file, wanted)
    _check_complete(file, shapes)
    _check_feed_forward(file, shapes)
    # The grid of positions is resized to the image's.
    n_positions = shapes.get("v.position_embd.weight", (0,))[0]
    if isqrt(n_positions) ** 2 != n_positions:
        raise GGUFError(f"`{file.path}` has {n_positions} positions, no square", hint=HINT)
    if kind == "qwen2.5vl_merger":
        _check_windows(file)
    return read_qwen_canvas(file)


def read_qwen_canvas(file: GGUFFile) -> StretchCanvas:
    """Return how images are stretched: between the file's bounds, or libmtmd's where it has none.

    Raises:
        GGUFError: bounds that no image can keep.
    """
    cell = number(file, "patch_size") * _MERGE
    least, most = (
        max(numbers(file, f"{VISION}image_{name}_pixels"), default=n_tokens * cell**2)
        for name, n_tokens in (("min", _LEAST), ("max", _MOST))
    )
    if not 0 < cell**2 <= most <= _MOST_OF_ALL * cell**2 or not 0 < least <= most:
        raise GGUFError(
            f"`{file.path}` scales images to {least} to {most} pixels, in tokens of {cell} x"
            f" {cell}",
            hint=HINT,
        )
    return StretchCanvas(cell=cell, least=least, most=most, widens=False)


def _check_complete(file: GGUFFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a block has all its matrices: some are read where they are not."""
    for block in sorted({match[0] for name in shapes if (match := _BLOCK.match(name))}):
        joined = f"{block}attn_qkv.weight" in shapes
        attention = ("attn_qkv",) if joined else ("attn_q", "attn_k", "attn_v")
        for part in (*attention, *_PARTS) if block.startswith("v.blk.") else _DEEPSTACK:
            if f"{block}{part}.weight" not in shapes:
                raise GGUFError(f"`{file.path}` has no tensor `{block}{part}.weight`", hint=HINT)


def _wanted_shape(file: GGUFFile, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor, with 0 for any size; () for any shape."""
    width, patch, n_out = (
        number(file, key) for key in ("embedding_length", "patch_size", "projection_dim")
    )
    merged = _MERGED * width
    block = r"v\.blk\.\d+\."
    shapes: dict[str, tuple[int, ...]] = {
        r"v\.patch_embd\.weight(\.1)?": (width, 3, patch, patch),
        r"v\.(patch_embd\.bias|post_ln\.(weight|bias))": (width,),
        r"v\.position_embd\.weight": (0, width),
        block + r"attn_(q|k|v|out)\.weight": (width, width),
        block + r"(attn_(q|k|v|out)\.bias|ln[12]\.(weight|bias))": (width,),
        block + r"attn_qkv\.weight": (3 * width, width),
        block + r"attn_qkv\.bias": (3 * width,),
        r"(mm\.0|v\.deepstack\.\d+\.fc1)\.weight": (merged, merged),
        r"(mm\.0|v\.deepstack\.\d+\.fc1)\.bias": (merged,),
        r"v\.deepstack\.\d+\.norm\.(weight|bias)": (merged,),
        r"(mm\.2|v\.deepstack\.\d+\.fc2)\.bias": (n_out,),
        r"(mm\.2|v\.deepstack\.\d+\.fc2)\.weight": (n_out, merged),
    }
    return next((shape for form, shape in shapes.items() if re.fullmatch(form, name)), ())


def _check_feed_forward(file: GGUFFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check matrices between the tower's width and one number of hidden channels a block.

    Old files have `ffn_up` and `ffn_down` swapped.
    """
    width = number(file, "embedding_length")
    for name, shape in shapes.items():
        if not _FEED_FORWARD.fullmatch(name):
            continue
        block = name.rpartition(".ffn_")[0]
        n_hidden = {
            size
            for part in ("up", "down")
            for size in shapes.get(f"{block}.ffn_{part}.weight", ())
            if size != width
        } or {width}
        sizes = {width, *n_hidden}
        if len(n_hidden) > 1 or not sizes.issuperset(shape) or len(shape) > 2:
            raise GGUFError(
                f"`{file.path}`: tensor `{name}` has the shape {list(shape)} in a tower of {width}",
                hint=HINT,
            )


def _check_windows(file: GGUFFile) -> None:
    """Check the windows of a Qwen2.5-VL tower (tools/mtmd/clip.cpp, `PROJECTOR_TYPE_QWEN25VL`).

    A mask that no layer uses is an assertion that ends the process; windows of 112 pixels that hold
    no 2 x 2 patches are filled for ever.
    """
    pattern = number(file, "n_wa_pattern") or None
    patch_size = number(file, "patch_size")
    if pattern == 1 or (pattern and patch_size > _MAX_WINDOW_PATCH):
        raise GGUFError(
            f"`{file.path}` has windows that llama.cpp cannot compute: n_wa_pattern {pattern},"
            f" patches of {patch_size} pixels",
            hint="convert the model again with edgevlm",
        )
