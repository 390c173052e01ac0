"""What Gemma 3n's tower of convolutions takes beside its weights, from its tensors alone.

The most is alive at one of these moments, found by following llama.cpp's graph
(tools/mtmd/models/mobilenetv5.cpp): a norm has a picture twice, as F32; a kernel for each channel
has the picture, every pixel's neighbourhood as F16 (`ggml_conv_2d_dw`), and what comes out;
attention has its table twice. The picture that goes into the block is kept besides. For the
published tower and its images of 768 x 768 that is 0.52 GB, in the first block of the second stage;
the kernel's peak of the whole process was 1.03 times what is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.projector_shapes import number

_F32, _F16 = 4, 2
_N_STAGES = 4
# ggml's buffer for convolutions (GGML_IM2COL_WORK_SIZE); pixels as floats and as they came.
_WORK_BYTES, _PIXEL_BYTES = 1 << 24, 30
Shapes = Mapping[str, tuple[int, ...]]


def convolution_compute(file: GGUFFile) -> int:
    """Return the bytes of intermediate values of an image, and of the image itself.

    Args:
        file: header of a projector of type `gemma3nv`; tensors that are missing count for nothing.
    """
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    image_side = number(file, "image_size")
    width, side = _channels(shapes, "v.conv_stem.conv.weight"), _half(image_side)
    most = 2 * _F32 * width * side**2
    for stage in range(_N_STAGES):
        block = 0
        while any((stem := f"v.blk.{stage}.{block}.") + part in shapes for part in _FIRST):
            out_side = side if block else _half(side)
            kept = _F32 * width * side**2
            most = max(most, kept + _block(stem, shapes, width, side, out_side))
            side, width = out_side, _width(stem, shapes, width)
            block += 1
    return most + _WORK_BYTES + _PIXEL_BYTES * image_side**2


_FIRST = (
    "conv_exp.weight",
    "dw_start.conv.weight",
    "pw_exp.conv.weight",
    "attn.query.proj.weight",
)


def _block(stem: str, shapes: Shapes, width: int, side: int, out_side: int) -> int:
    """Return the bytes of a block at its worst, besides the picture that goes in."""
    query = _channels(shapes, f"{stem}attn.query.proj.weight")
    if query:
        head = max(1, _channels(shapes, f"{stem}attn.key.proj.weight"))
        halves = f"{stem}attn.key.down_conv.weight" in shapes
        n_keys = (_half(side) if halves else side) ** 2
        return 2 * _F32 * (query // head) * side**2 * n_keys
    inner = _channels(shapes, f"{stem}pw_exp.conv.weight")
    if not inner:
        return 2 * _F32 * _channels(shapes, f"{stem}conv_exp.weight") * out_side**2
    start = shapes.get(f"{stem}dw_start.conv.weight", (0,))[-1]
    mid = shapes.get(f"{stem}dw_mid.conv.weight", (0,))[-1]
    return max(
        2 * _F32 * inner * side**2,
        _depthwise(width, start, side, side),
        _depthwise(inner, mid, side, out_side),
    )


def _depthwise(channels: int, kernel: int, side: int, out_side: int) -> int:
    around = _F16 * kernel**2 * out_side**2
    return channels * (_F32 * side**2 + around + _F32 * out_side**2)


def _width(stem: str, shapes: Shapes, width: int) -> int:
    """Return the channels that come out of a block."""
    names = ("conv_pwl.weight", "pw_proj.conv.weight", "attn.output.proj.weight")
    return next((shapes[stem + name][0] for name in names if stem + name in shapes), width)


def _channels(shapes: Shapes, name: str) -> int:
    return shapes.get(name, (0,))[0]


def _half(side: int) -> int:
    return -(-side // 2)
