"""MobileNetV5, Gemma 3n's tower of convolutions: four stages of blocks, the last two joined.

Facts: blocks of `mobilenetv5_300m_enc`, names and shapes from timm's mobilenetv5.py and
_efficientnet_blocks.py; names in the file from llama.cpp conversion/gemma.py, what the graph
computes from tools/mtmd/models/mobilenetv5.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edgevlm_convert.config import MAX_HEADS, MAX_WIDTH, Section
from edgevlm_convert.rules import Precision, Rename, Rule
from edgevlm_convert.shape_rules import Channels

ARCHITECTURE = "mobilenetv5_300m_enc"
_STEM = 64
_N_STAGES, _MAX_BLOCKS = 4, 256
# timm rounds widths to a multiple of this.
_STEP = 8
_KERNELS = (3, 5)
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of a stage.

    Attributes:
        kind: "er" (an edge residual), "uir" (an inverted residual) or "mqa" (attention).
        width: channels that come out.
        start: side of the kernel before channels are added; 0: there is none.
        mid: side of the kernel behind; 0: there is none.
        growth: how many times as many channels there are inside.
        n_heads: of attention.
        head: channels of one.
        halves: keys and values are of half as many rows and columns.
    """

    kind: str
    width: int
    start: int = 0
    mid: int = 0
    growth: int = 1
    n_heads: int = 0
    head: int = 0
    halves: bool = False


def _uir(width: int, start: int, mid: int, growth: int) -> Block:
    return Block(kind="uir", width=width, start=start, mid=mid, growth=growth)


def _mixed(width: int, n: int, attention: Block) -> tuple[Block, ...]:
    """Return attention and an inverted residual without kernels, n times."""
    return (attention, _uir(width, 0, 0, 2)) * n


_HALVED = Block(kind="mqa", width=640, n_heads=12, head=64, halves=True)
_WHOLE = Block(kind="mqa", width=1280, n_heads=16, head=96)
_PUBLISHED: tuple[tuple[Block, ...], ...] = (
    (Block(kind="er", width=128, growth=4),) * 3,
    (_uir(256, 3, 5, 6), *(_uir(256, start, 0, 4) for start in (5, 3, 5, 3))),
    (
        _uir(640, 5, 5, 6),
        *(_uir(640, 5, 0, 4),) * 7,
        _uir(640, 0, 0, 1),
        *_mixed(640, 14, _HALVED),
    ),
    (_uir(1280, 5, 5, 6), *_mixed(1280, 19, _WHOLE)),
)


def tower_rules(vision: Section, prefix: str, n_out: int) -> list[Rule]:
    """Return the rules of the tower.

    Args:
        vision: its configuration.
        prefix: of its tensors, with a final dot.
        n_out: channels of what it gives.

    Raises:
        CheckpointError: a tower that llama.cpp's graph does not compute.
    """
    vision.require("architecture", (ARCHITECTURE,), default=ARCHITECTURE)
    stem, stages = _read_layout(vision)
    rules = _kernel(f"{prefix}conv_stem.conv", "v.conv_stem.conv", (stem, 3, 3, 3), "f32")
    rules += [
        Channels(source=f"{prefix}conv_stem.conv.bias", n=stem, target="v.conv_stem.conv.bias"),
        *_norm(f"{prefix}conv_stem.bn", "v.conv_stem.bn", stem),
    ]
    width = stem
    for stage, blocks in enumerate(stages):
        for number, block in enumerate(blocks):
            if block.kind == "mqa" and block.width != width:
                key = f"model_args.block_args[{stage}][{number}].out_chs"
                vision.fail(key, f"{width}: attention is added to what goes in")
            names = f"{prefix}blocks.{stage}.{number}.", f"v.blk.{stage}.{number}."
            rules += _BLOCK_RULES[block.kind](*names, width, block)
            width = block.width
    n_joined = sum(blocks[-1].width for blocks in stages[-2:])
    names = f"{prefix}msfa.ffn.", "v.msfa.ffn."
    rules += _pointwise(*names, "pw_exp", (2 * n_joined, n_joined))
    rules += _pointwise(*names, "pw_proj", (n_out, 2 * n_joined))
    return rules + _norm(f"{prefix}msfa.norm", "v.msfa.norm", n_out)


def _kernel(source: str, target: str, shape: Shape, precision: Precision) -> list[Rule]:
    return [
        Rename(
            source=f"{source}.weight", target=f"{target}.weight", shape=shape, precision=precision
        )
    ]


def _norm(source: str, target: str, width: int) -> list[Rule]:
    return [Rename(source=f"{source}.weight", target=f"{target}.weight", shape=(width,))]


def _pointwise(source: str, target: str, name: str, shape: Shape) -> list[Rule]:
    """Return the rules of a matrix, which is a kernel of one pixel, and of the norm behind it."""
    return [
        *_kernel(f"{source}{name}.conv", f"{target}{name}.conv", (*shape, 1, 1), "kernel"),
        *_norm(f"{source}{name}.bn", f"{target}{name}.bn", shape[0]),
    ]


def _depthwise(source: str, target: str, name: str, width: int, side: int) -> list[Rule]:
    """Return the rules of a kernel for each channel, which ggml multiplies in F16 alone."""
    if not side:
        return []
    shape = (width, 1, side, side)
    return [
        *_kernel(f"{source}{name}.conv", f"{target}{name}.conv", shape, "f16"),
        *_norm(f"{source}{name}.bn", f"{target}{name}.bn", width),
    ]


def _edge_rules(source: str, target: str, width: int, block: Block) -> list[Rule]:
    inner = width * block.growth
    return [
        *_kernel(f"{source}conv_exp", f"{target}conv_exp", (inner, width, 3, 3), "kernel"),
        *_norm(f"{source}bn1", f"{target}bn1", inner),
        *_kernel(f"{source}conv_pwl", f"{target}conv_pwl", (block.width, inner, 1, 1), "kernel"),
        *_norm(f"{source}bn2", f"{target}bn2", block.width),
    ]


def _inverted_rules(source: str, target: str, width: int, block: Block) -> list[Rule]:
    inner = width * block.growth
    return [
        *_depthwise(source, target, "dw_start", width, block.start),
        *_pointwise(source, target, "pw_exp", (inner, width)),
        *_depthwise(source, target, "dw_mid", inner, block.mid),
        *_pointwise(source, target, "pw_proj", (block.width, inner)),
        _scale(source, target, block.width),
    ]


def _attention_rules(source: str, target: str, width: int, block: Block) -> list[Rule]:
    n_query = block.n_heads * block.head
    shapes = {
        "query": (n_query, width),
        "key": (block.head, width),
        "value": (block.head, width),
        "output": (block.width, n_query),
    }
    rules = _norm(f"{source}norm", f"{target}norm", width)
    for name, shape in shapes.items():
        stem = f"attn.{name}."
        names = f"{source}{stem}", f"{target}{stem}"
        if block.halves and name in ("key", "value"):
            down = "down_conv"
            rules += _kernel(f"{names[0]}{down}", f"{names[1]}{down}", (width, 1, 3, 3), "f16")
            rules += _norm(f"{names[0]}norm", f"{names[1]}norm", width)
        rules += _kernel(f"{names[0]}proj", f"{names[1]}proj", (*shape, 1, 1), "kernel")
    return [*rules, _scale(source, target, block.width)]


def _scale(source: str, target: str, width: int) -> Rule:
    name = "layer_scale.gamma"
    return Channels(source=f"{source}{name}", n=width, target=f"{target}{name}")


# Keys of timm's blocks that say something here, and the values of others that the graph computes.
_READ = {
    "block_type",
    "dw_kernel_size_mid",
    "dw_kernel_size_start",
    "exp_ratio",
    "key_dim",
    "kv_stride",
    "num_heads",
    "out_chs",
    "stride",
    "value_dim",
}
_FIXED: Mapping[str, tuple[object, ...]] = {
    "act_layer": ("",),
    "dw_kernel_size": (3,),
    "dw_kernel_size_end": (0,),
    "exp_kernel_size": (3,),
    "force_in_chs": (0,),
    "noskip": (False,),
    "pw_kernel_size": (1,),
    "se_ratio": (0.0, 0),
}
_BLOCK_RULES = {"er": _edge_rules, "uir": _inverted_rules, "mqa": _attention_rules}


def _read_layout(vision: Section) -> tuple[int, Sequence[Sequence[Block]]]:
    """Return the channels of the stem and the blocks of each stage.

    transformers hands `model_args` on to timm; of these a tower of other blocks is taken.
    """
    key = "model_args"
    given = vision.section(key) if vision.has(key) else vision.empty(key)
    for other in set(given.keys()) - {"block_args", "stem_size"}:
        given.fail(other, "block_args or stem_size: no Gemma 3n has other settings of its tower")
    stem = given.integer("stem_size", low=_STEP, high=MAX_WIDTH, default=_STEM)
    if stem % _STEP:
        given.fail("stem_size", f"a multiple of {_STEP}")
    if not given.has("block_args"):
        return stem, _PUBLISHED
    stages = given.raw("block_args")
    expected = f"{_N_STAGES} stages of blocks, each a list of objects"
    if not isinstance(stages, list) or len(cast(list[object], stages)) != _N_STAGES:
        given.fail("block_args", expected)
    found: list[list[Block]] = []
    for number, stage in enumerate(cast(list[object], stages)):
        blocks = cast(list[object], stage) if isinstance(stage, list) else []
        if not 0 < len(blocks) <= _MAX_BLOCKS:
            given.fail("block_args", expected)
        sections = [_section(given, f"block_args[{number}][{n}]", b) for n, b in enumerate(blocks)]
        found.append([_read_block(one, is_first=n == 0) for n, one in enumerate(sections)])
    return stem, found


def _section(given: Section, name: str, block: object) -> Section:
    return given.with_values({name: block}).section(name)


def _read_block(block: Section, *, is_first: bool) -> Block:
    """Return a block as timm's `decode_arch_def` writes it.

    Raises:
        CheckpointError: one that the graph computes in another way.
    """
    kind = block.text("block_type")
    if kind not in _BLOCK_RULES:
        block.fail("block_type", " or ".join(_BLOCK_RULES))
    block.require("stride", (2 if is_first else 1,), default=1)
    for name in sorted(set(block.keys()) - _READ):
        if name not in _FIXED:
            block.fail(name, "no such key: no block of Gemma 3n's tower has it")
        block.require(name, _FIXED[name], default=_FIXED[name][0])
    width = block.integer("out_chs", low=_STEP, high=MAX_WIDTH)
    if width % _STEP:
        block.fail("out_chs", f"a multiple of {_STEP}")
    if kind == "mqa":
        return _read_attention(block, width, is_first=is_first)
    growth = block.number("exp_ratio", low=1, high=64)
    if growth != int(growth):
        block.fail("exp_ratio", "a whole number")
    if kind == "er":
        return Block(kind=kind, width=width, growth=int(growth))
    sides: Mapping[str, int] = {
        key: block.integer(key, low=0, high=5)
        for key in ("dw_kernel_size_start", "dw_kernel_size_mid")
    }
    for key, side in sides.items():
        if side not in (0, *_KERNELS):
            block.fail(key, "0, 3 or 5")
    start, mid = sides.values()
    if is_first and not mid:
        block.fail("dw_kernel_size_mid", "3 or 5: there the picture is halved")
    return Block(kind=kind, width=width, start=start, mid=mid, growth=int(growth))


def _read_attention(block: Section, width: int, *, is_first: bool) -> Block:
    if is_first:
        block.fail("block_type", "er or uir: attention does not halve the picture")
    head = block.integer("key_dim", low=1, high=MAX_WIDTH)
    block.require("value_dim", (head,), default=head)
    stride = block.integer("kv_stride", low=1, high=2, default=1)
    return Block(
        kind="mqa",
        width=width,
        n_heads=block.integer("num_heads", low=1, high=MAX_HEADS),
        head=head,
        halves=stride == 2,
    )
