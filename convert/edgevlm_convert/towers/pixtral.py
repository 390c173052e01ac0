"""Pixtral's vision tower and what joins it to a text model, shared by all families that have it.

Patches have no learned positions: rotary ones turn the first half of a head by the row and the
second by the column. Facts: names from llama.cpp conversion/llava.py and gguf-py
tensor_mapping.py; what the graph fixes from tools/mtmd/models/pixtral.cpp and clip.cpp
(`PROJECTOR_TYPE_PIXTRAL`); how images are resized from tools/mtmd/mtmd-image.cpp; config keys,
defaults and the epsilon of the norms from transformers' pixtral and mistral3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm.errors import ConversionError
from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source
from edgevlm_convert.metadata import f32, string, u32
from edgevlm_convert.rules import Rename, Row, Rule, Transform
from edgevlm_convert.towers.vision import (
    TowerSizes,
    pair,
    read_image_size,
    read_tower,
    size_metadata,
)
from edgevlm_convert.towers.vit import activation_metadata
from edgevlm_convert.transforms import paired_halves

IMAGE_BREAK = "[IMG_BREAK]"
_DEFAULTS: Mapping[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 1024,
    "patch_size": 16,
    "hidden_act": "gelu",
}
_BICUBIC = 3
_THETAS = (10_000.0, 10_000)
# transformers fixes the epsilon of the tower's norms.
_EPSILON = 1e-5
_MAX_MERGED = 16
# Of libmtmd, for an image (tools/mtmd/clip.cpp).
_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How a family joins the tower to its text model.

    Attributes:
        projector_type: llama.cpp's name.
        n_merged: patches a side that become one visual token.
        merges: whether a norm and a matrix of its own do that, as in Mistral 3.
        bias: whether the two layers behind have one.
        breaks_rows: whether every row of an image ends with the embedding of `[IMG_BREAK]`.
        losses: what llama.cpp does otherwise with images.
    """

    projector_type: str
    n_merged: int
    merges: bool
    bias: bool
    breaks_rows: bool
    losses: tuple[str, ...] = ()


def read_n_merged(config: Section) -> int:
    """Return how many patches a side become one visual token, of a family that merges them."""
    return config.integer("spatial_merge_size", low=1, high=_MAX_MERGED, default=2)


def read_longest_edge(preprocessor: Section, *, default: int) -> int:
    """Return the longest side in pixels that the checkpoint's own processor leaves an image."""
    size = preprocessor.section("size") if preprocessor.has("size") else preprocessor.empty("size")
    if size.has("longest_edge") or not size.has("height"):
        return size.integer("longest_edge", low=1, high=1 << 20, default=default)
    height, width = (size.integer(key, low=1, high=1 << 20) for key in ("height", "width"))
    if height != width:
        size.fail("width", f"the height {height}")
    return height


def image_losses(preprocessor: Section, cell: int) -> tuple[str, ...]:
    """Say what llama.cpp does otherwise with images than `PixtralImageProcessor`.

    Args:
        preprocessor: image settings.
        cell: side of a visual token in pixels.
    """
    longest = read_longest_edge(preprocessor, default=1024)
    most = math.ceil(longest / cell) ** 2
    limits = ""
    if most != _MAX_TOKENS:
        # Ends of rows come on top, on either side.
        limits = f" to {_MAX_TOKENS} visual tokens at most, transformers to {most}"
    return (
        f"images whose sides are no multiples of {cell} pixels, or long: llama.cpp scales them"
        f"{limits}, and puts bars beside them where transformers stretches",
    )


def build_pixtral(source: Source, joint: Joint) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    sizes = _read_sizes(vision)
    source.config.require("projector_hidden_act", ("gelu", "gelu_pytorch_tanh"), default="gelu")
    source.preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    merged = {"clip.vision.spatial_merge_size": u32(joint.n_merged)} if joint.merges else {}
    return Part(
        rules=(
            *_tower_rules(source, sizes),
            *_joint_rules(source, sizes, joint),
            *(_break_rules(source) if joint.breaks_rows else ()),
        ),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(joint.projector_type),
            "clip.vision.attention.layer_norm_epsilon": f32(_EPSILON),
            **activation_metadata(vision),
            **merged,
        },
        losses=(*joint.losses, *_norm_losses(source, joint)),
    )


def _read_sizes(vision: Section) -> TowerSizes:
    """Return the tower's sizes, after refusing what the graph computes in one way only."""
    vision.require("num_channels", (3,), default=3)
    sizes = read_tower(
        vision,
        layers="num_hidden_layers",
        heads="num_attention_heads",
        image_size=read_image_size(vision),
    )
    head_dim = sizes.n_embd // sizes.n_head
    if head_dim % 4:
        vision.fail("num_attention_heads", "heads of 4 channels each, or a multiple")
    vision.require("head_dim", (head_dim,), default=head_dim)
    vision.require("rope_theta", _THETAS, default=_THETAS[0])
    if vision.has("rope_parameters"):
        rope = vision.section("rope_parameters")
        rope.require("rope_theta", _THETAS, default=_THETAS[0])
        rope.require("rope_type", ("axial", "default"), default="axial")
    return sizes


def _tower_rules(source: Source, sizes: TowerSizes) -> list[Rule]:
    prefix, n_embd = source.prefixes.vision, sizes.n_embd
    rules: list[Rule] = [
        Rename(
            source=f"{prefix}patch_conv.weight",
            target="v.patch_embd.weight",
            shape=(n_embd, 3, sizes.patch_size, sizes.patch_size),
            precision="f16 or f32",
        ),
        *pair(f"{prefix}ln_pre", "v.pre_ln", (n_embd,), bias=False),
    ]
    halves = paired_halves(sizes.n_head, n_embd // sizes.n_head)
    for layer in range(sizes.n_layers):
        block, target = f"{prefix}transformer.layers.{layer}.", f"v.blk.{layer}."
        rules += pair(f"{block}attention_norm", f"{target}ln1", (n_embd,), bias=False)
        for name in ("q", "k", "v", "o"):
            weight, to = f"{block}attention.{name}_proj.weight", f"{target}attn_{name}.weight"
            to = to.replace("attn_o.", "attn_out.")
            shape = (n_embd, n_embd)
            if name in "qk" and not source.rows_are_paired:
                rules.append(Transform(source=weight, target=to, shape=shape, rows=halves))
            else:
                rules.append(Rename(source=weight, target=to, shape=shape))
        rules += pair(f"{block}ffn_norm", f"{target}ln2", (n_embd,), bias=False)
        for name in ("gate", "up", "down"):
            shape = (n_embd, sizes.n_ff) if name == "down" else (sizes.n_ff, n_embd)
            layer_name = f"{block}feed_forward.{name}_proj"
            rules += pair(layer_name, f"{target}ffn_{name}", shape, bias=False)
    return rules


def _joint_rules(source: Source, sizes: TowerSizes, joint: Joint) -> list[Rule]:
    prefix, n_embd = source.prefixes.projector, sizes.n_embd
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    rules: list[Rule] = []
    if joint.merges:
        merged = n_embd * joint.n_merged**2
        rules += pair(f"{prefix}norm", "mm.input_norm", (n_embd,), bias=False)
        rules.append(
            Rename(
                source=f"{prefix}patch_merger.merging_layer.weight",
                target="mm.patch_merger.weight",
                shape=(n_embd, merged),
                precision="f16 or f32",
            )
        )
    rules += pair(f"{prefix}linear_1", "mm.1", (n_text, n_embd), bias=joint.bias)
    rules += pair(f"{prefix}linear_2", "mm.2", (n_text, n_text), bias=joint.bias)
    return rules


def _break_rules(source: Source) -> list[Rule]:
    """Return the rule of what the tower puts behind each row of an image but the last."""
    token = source.token_id(IMAGE_BREAK)
    if token is None or token >= source.n_vocab:
        raise ConversionError(
            f"the tokenizer lacks {IMAGE_BREAK!r}, which stands behind every row of an image",
            hint="tokenizer and weights are of different models; download the checkpoint again",
        )
    return [
        Row(
            source=f"{source.prefixes.text}embed_tokens.weight",
            row=token,
            target="v.token_embd.img_break",
        )
    ]


def _norm_losses(source: Source, joint: Joint) -> tuple[str, ...]:
    """Say where the graph's one epsilon is another than that of the norm before merging."""
    epsilon = source.text.number("rms_norm_eps", low=1e-12, high=1.0)
    if not joint.merges or epsilon == _EPSILON:
        return ()
    return (
        f"norm behind the vision tower: llama.cpp takes the tower's epsilon {_EPSILON:g} for it,"
        f" transformers the text model's {epsilon:g}",
    )
