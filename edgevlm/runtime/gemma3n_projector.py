"""What must hold of a Gemma 3n projector before llama.cpp may see it.

Facts: tools/mtmd/models/mobilenetv5.cpp and clip.cpp (`PROJECTOR_TYPE_GEMMA3NV`), which kernels
ggml takes from ggml.c (`ggml_conv_2d_dw`) and ggml-cpu/ops.cpp. The loader takes what it finds: a
tensor that is missing, of another shape or of a type without a kernel ends the process at the first
image. So does a file of llama.cpp's own converter as vendored in llama-cpp-python 0.3.36, whose
scales of blocks have one dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile, GGUFTensor
from edgevlm.runtime.ended_canvas import EndedCanvas
from edgevlm.runtime.header import numbers
from edgevlm.runtime.projector_shapes import HINT, check_shapes, number, read_vector
from edgevlm.runtime.prompt import ImageSpan

# Visual tokens of an image, whatever its size; pictures whose sides are divided by as many.
N_TOKENS = 256
_MAX_SIDE = 2048
# Layers of the text model that make keys of their own (src/models/gemma3n.cpp).
N_OWN = 20
_N_STAGES = 4
_LAST_ROW, _END = "v.token_embd.img_end", "<end_of_image>"
_STEM, _JOINED = "v.conv_stem.", "v.msfa."
_KERNELS = (".conv.weight", ".conv_exp.weight", ".conv_pwl.weight", ".proj.weight")
_BY_CHANNEL = (".dw_start.conv.weight", ".dw_mid.conv.weight", ".down_conv.weight")
Shape = tuple[int, ...]


def gemma3n_span(file: GGUFFile, span: ImageSpan) -> ImageSpan:
    """Return how images are written, with what this projector's file says of them.

    Raises:
        GGUFError: a number is absurd, a tensor is missing, or of a shape or type that the graph
            does not compute.
    """
    side = number(file, "image_size")
    if side % N_TOKENS or not N_TOKENS <= side <= _MAX_SIDE:
        raise GGUFError(
            f"`{file.path}` has images of {side} pixels a side, no multiple of {N_TOKENS} up to"
            f" {_MAX_SIDE}",
            hint=HINT,
        )
    if number(file, "patch_size") != side // N_TOKENS:
        raise GGUFError(
            f"`{file.path}` has a patch_size of {number(file, 'patch_size')}, where {N_TOKENS}"
            f" tokens of {side} pixels need {side // N_TOKENS}",
            hint=HINT,
        )
    tensors = {tensor.name: tensor for tensor in file.tensors}
    _check_tensors(file, tensors)
    if _LAST_ROW not in tensors:
        # A file that is not of our making: the image ends with a token, as in llama.cpp.
        return replace(span, canvas=EndedCanvas(side=side))
    check_shapes(file, {_LAST_ROW: (number(file, "projection_dim"),)})
    last_row = read_vector(file, _LAST_ROW)
    return replace(span, frame=("", _END), canvas=EndedCanvas(side=side, last_row=last_row))


def check_gemma3n_text(file: GGUFFile) -> None:
    """Check that some layer slides, and that the layers whose keys others read are of both kinds.

    Raises:
        GGUFError: they are not; llama.cpp would end the process.
    """
    if file.architecture != "gemma3n":
        return
    n_layers = max(numbers(file, "gemma3n.block_count"), default=0)
    slides = numbers(file, "gemma3n.attention.sliding_window_pattern")
    if len(slides) > 1 and not any(slides[:n_layers]):
        raise GGUFError(f"`{file.path}` has no sliding layer", hint=HINT)
    if n_layers > N_OWN and len(slides) > 1 and list(slides[N_OWN - 2 : N_OWN]) != [1, 0]:
        raise GGUFError(
            f"`{file.path}` shares the keys of layers {N_OWN - 2} and {N_OWN - 1}, which must be a"
            " sliding one and a full one",
            hint=HINT,
        )


def _check_tensors(file: GGUFFile, tensors: Mapping[str, GGUFTensor]) -> None:
    n_out = number(file, "projection_dim")
    if number(file, "embedding_length") != n_out:
        raise GGUFError(
            f"`{file.path}` makes rows of {n_out} values from"
            f" {number(file, 'embedding_length')}: llama.cpp takes one for the other",
            hint=HINT,
        )
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    wanted: dict[str, Shape] = {
        "mm.input_projection.weight": (n_out, n_out),
        "mm.soft_emb_norm.weight": (n_out,),
    }
    width = shapes.get(f"{_STEM}conv.weight", (0,))[0]
    wanted[f"{_STEM}conv.weight"] = (width, 3, 3, 3)
    wanted[f"{_STEM}bn.weight"] = (width,)
    if f"{_STEM}conv.bias" in shapes:
        wanted[f"{_STEM}conv.bias"] = (1, width, 1, 1)
    widths: list[int] = []
    for stage in range(_N_STAGES):
        width = _add_stage(file, f"v.blk.{stage}.", width, shapes, wanted)
        widths.append(width)
    joined = sum(widths[-2:])
    inner = shapes.get(f"{_JOINED}ffn.pw_exp.conv.weight", (0,))[0]
    wanted |= _pointwise(f"{_JOINED}ffn.", "pw_exp", inner, joined)
    wanted |= _pointwise(f"{_JOINED}ffn.", "pw_proj", n_out, inner)
    wanted[f"{_JOINED}norm.weight"] = (n_out,)
    check_shapes(file, wanted)
    for name in wanted:
        _check_type(file, tensors[name])


def _add_stage(
    file: GGUFFile,
    stage: str,
    width: int,
    shapes: Mapping[str, Shape],
    wanted: dict[str, Shape],
) -> int:
    """Add the shapes that a stage's tensors must have; return how many channels come out."""
    number_ = 0
    while found := _block(f"{stage}{number_}.", width, shapes, halves=number_ == 0):
        wanted |= found[0]
        width = found[1]
        number_ += 1
    if number_ == 0:
        raise GGUFError(f"`{file.path}` has no tensor `{stage}0...`", hint=HINT)
    return width


def _block(
    name: str, width: int, shapes: Mapping[str, Shape], *, halves: bool
) -> tuple[dict[str, Shape], int] | None:
    """Return the shapes of a block's tensors and how many channels come out; None: no such block.

    The kinds in the order in which llama.cpp's loader asks for them.
    """
    if inner := shapes.get(f"{name}conv_exp.weight"):
        out = shapes.get(f"{name}conv_pwl.weight", (0,))[0]
        return {
            f"{name}conv_exp.weight": (inner[0], width, 3, 3),
            f"{name}bn1.weight": inner[:1],
            f"{name}conv_pwl.weight": (out, inner[0], 1, 1),
            f"{name}bn2.weight": (out,),
        }, out
    if f"{name}dw_start.conv.weight" in shapes or f"{name}pw_exp.conv.weight" in shapes:
        return _inverted(name, width, shapes, halves=halves)
    if f"{name}attn.query.proj.weight" in shapes and not halves:
        return _attention(name, width, shapes), width
    return None


def _inverted(
    name: str, width: int, shapes: Mapping[str, Shape], *, halves: bool
) -> tuple[dict[str, Shape], int]:
    inner = shapes.get(f"{name}pw_exp.conv.weight", (0,))[0]
    out = shapes.get(f"{name}pw_proj.conv.weight", (0,))[0]
    wanted = _pointwise(name, "pw_exp", inner, width) | _pointwise(name, "pw_proj", out, inner)
    for part, channels in (("dw_start", width), ("dw_mid", inner)):
        kernel = shapes.get(f"{name}{part}.conv.weight")
        if kernel or (halves and part == "dw_mid"):
            side = 3 if kernel and kernel[-1] == 3 else 5
            wanted[f"{name}{part}.conv.weight"] = (channels, 1, side, side)
            wanted[f"{name}{part}.bn.weight"] = (channels,)
    if f"{name}layer_scale.gamma" in shapes:
        wanted[f"{name}layer_scale.gamma"] = (1, out, 1, 1)
    return wanted, out


def _attention(name: str, width: int, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    head = max(1, shapes.get(f"{name}attn.key.proj.weight", (0,))[0])
    query = shapes[f"{name}attn.query.proj.weight"][0]
    # Heads that do not divide the query are found by its shape.
    query = max(1, query // head) * head
    wanted: dict[str, Shape] = {
        f"{name}norm.weight": (width,),
        f"{name}attn.query.proj.weight": (query, width, 1, 1),
        f"{name}attn.key.proj.weight": (head, width, 1, 1),
        f"{name}attn.value.proj.weight": (head, width, 1, 1),
        f"{name}attn.output.proj.weight": (width, query, 1, 1),
    }
    both = ("key", "value")
    if any(f"{name}attn.{part}.down_conv.weight" in shapes for part in both):
        for part in both:
            wanted[f"{name}attn.{part}.down_conv.weight"] = (width, 1, 3, 3)
            wanted[f"{name}attn.{part}.norm.weight"] = (width,)
    if f"{name}layer_scale.gamma" in shapes:
        wanted[f"{name}layer_scale.gamma"] = (1, width, 1, 1)
    return wanted


def _pointwise(name: str, part: str, out: int, width: int) -> dict[str, Shape]:
    return {
        f"{name}{part}.conv.weight": (out, width, 1, 1),
        f"{name}{part}.bn.weight": (out,),
    }


def _check_type(file: GGUFFile, tensor: GGUFTensor) -> None:
    """Refuse types that ggml has no kernel for."""
    allowed: tuple[str, ...] = ("F32",)
    if tensor.name.endswith(_BY_CHANNEL):
        allowed = ("F16",)
    elif tensor.name.endswith(_KERNELS):
        allowed = ("F32", "F16")
    elif tensor.name.startswith("mm.input_projection"):
        return
    if tensor.type not in allowed:
        raise GGUFError(
            f"`{file.path}` holds `{tensor.name}` as {tensor.type}: llama.cpp takes"
            f" {' or '.join(allowed)}",
            hint=HINT,
        )
