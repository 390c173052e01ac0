"""HunYuanVL, HunyuanOCR: a plain ViT of any image size, a merger of convolutions, Hunyuan.

Facts: metadata from llama.cpp conversion/hunyuan.py (`HunyuanVLVisionModel`), what its graph fixes
from tools/mtmd/models/hunyuanvl.cpp and clip.cpp; config keys and defaults from transformers'
`HunYuanVLVisionConfig`, both namings of tensors from its conversion_mapping.py; the image span from
tools/mtmd/mtmd.cpp and transformers' `HunYuanVLProcessor`.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.row_rules import LaterRows
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.text.hunyuan_vl import HUNYUAN_VL_TEXT
from edgevlm_convert.towers.vision import TowerSizes, pair, read_tower, size_metadata

_PROJECTOR_TYPE = "hunyuanvl"
_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 16,
    "max_image_size": 2048,
    "rms_norm_eps": 1e-5,
}
_MERGE = 2
_MAX_SIDE = 8192
_LEAST, _MOST = 512 * 512, 2048 * 2048
# Pillow's, which transformers takes whatever the file says, as the model's own code did.
_RESAMPLE = (1, 3)
# Tencent's own names -> those of transformers' class.
_NEW_NAMES: Mapping[str, str] = {
    ".input_layernorm": ".layer_norm1",
    ".post_attention_layernorm": ".layer_norm2",
    "dense_h_to_4h": "fc1",
    "dense_4h_to_h": "fc2",
    "perceive.proj.0": "patch_merger.proj_conv",
    "perceive.proj.2": "patch_merger.proj_out",
    "perceive.": "patch_merger.",
}
_OLD, _NEW = "vit.", "model.vision_tower."
_BEFORE, _PAD, _BEHIND = (
    f"<\uff5chy_place\u2581holder\u2581no\u2581{n}\uff5c>" for n in (100, 102, 101)
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    sizes = _read_sizes(source, vision)
    epsilon = vision.number("rms_norm_eps", low=1e-12, high=1.0)
    return Part(
        rules=(
            *_tower_rules(source, sizes),
            *_merger_rules(source, sizes.n_embd),
        ),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.use_gelu": boolean(True),
            "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
            "clip.vision.spatial_merge_size": u32(_MERGE),
            **_bounds(source.preprocessor, _MERGE * sizes.patch_size),
        },
        losses=(
            f"an image that is made exactly {sizes.image_size} pixels wide or high: llama.cpp moves"
            " the positions along that side by up to a tenth of a patch",
        ),
    )


def _read_sizes(source: Source, vision: Section) -> TowerSizes:
    vision.require("num_channels", (3,), default=3)
    vision.require("hidden_act", ("gelu",), default="gelu")
    vision.require("interpolate_mode", ("bilinear",), default="bilinear")
    vision.require("spatial_merge_size", (_MERGE,), default=_MERGE)
    vision.require("temporal_patch_size", (1,), default=1)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    vision.require("text_hidden_size", (n_text,), default=n_text)
    side = vision.integer("max_image_size", low=1, high=_MAX_SIDE)
    sizes = read_tower(
        vision, layers="num_hidden_layers", heads="num_attention_heads", image_size=side
    )
    vision.require("num_key_value_heads", (sizes.n_head,), default=sizes.n_head)
    if side % sizes.patch_size:
        vision.fail("max_image_size", f"a multiple of the {sizes.patch_size} pixels of a patch")
    if sizes.n_ff == sizes.n_embd:
        # tools/mtmd/clip.cpp tells old files, with both names exchanged, by their shapes.
        vision.fail("intermediate_size", f"another number than the hidden size {sizes.n_embd}")
    return sizes


def _bounds(preprocessor: Section, cell: int) -> dict[str, Value]:
    """Return the pixels that an image has at least and at most; the engine stretches it."""
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", _RESAMPLE, default=_RESAMPLE[1])
    preprocessor.require("merge_size", (_MERGE,), default=_MERGE)
    size = preprocessor.section("size") if preprocessor.has("size") else preprocessor.empty("size")
    found: list[int] = []
    for old, new, usual in (
        ("min_pixels", "shortest_edge", _LEAST),
        ("max_pixels", "longest_edge", _MOST),
    ):
        # transformers puts the older name first.
        where, key = (preprocessor, old) if preprocessor.has(old) else (size, new)
        found.append(where.integer(key, low=cell**2, high=1 << 30, default=usual))
        if found[-1] < found[0]:
            where.fail(key, f"at least the smallest image's {found[0]} pixels")
    return {
        "clip.vision.image_min_pixels": u32(found[0]),
        "clip.vision.image_max_pixels": u32(found[1]),
    }


def _named(source: Source, name: str) -> str:
    """Return a tensor's name in the checkpoint by Tencent's own, without what it begins with."""
    if not any(one.startswith(_NEW) for one in source.shapes):
        return f"{_OLD}{name}"
    for old, new in _NEW_NAMES.items():
        name = name.replace(old, new)
    return f"{_NEW}{name}"


def _tower_rules(source: Source, sizes: TowerSizes) -> list[Rule]:
    n_embd, n_ff, patch = sizes.n_embd, sizes.n_ff, sizes.patch_size
    kernel = _named(source, "embeddings.patch_embedding")
    rules: list[Rule] = [
        Rename(
            source=f"{kernel}.weight",
            target="v.patch_embd.weight",
            shape=(n_embd, 3, patch, patch),
            precision="f16 or f32",
        ),
        Rename(source=f"{kernel}.bias", target="v.patch_embd.bias", shape=(n_embd,)),
        # Row 0 is a class token's, which the tower does not have.
        LaterRows(
            source=_named(source, "embeddings.position_embedding.weight"),
            shape=(sizes.n_patches + 1, n_embd),
            first=1,
            target="v.position_embd.weight",
            precision="f32",
        ),
    ]
    for layer in range(sizes.n_layers):
        for name, (to, shape) in {
            "input_layernorm": ("ln1", (n_embd,)),
            "post_attention_layernorm": ("ln2", (n_embd,)),
            "self_attn.q_proj": ("attn_q", (n_embd, n_embd)),
            "self_attn.k_proj": ("attn_k", (n_embd, n_embd)),
            "self_attn.v_proj": ("attn_v", (n_embd, n_embd)),
            "self_attn.o_proj": ("attn_out", (n_embd, n_embd)),
            "mlp.dense_h_to_4h": ("ffn_up", (n_ff, n_embd)),
            "mlp.dense_4h_to_h": ("ffn_down", (n_embd, n_ff)),
        }.items():
            rules += pair(_named(source, f"layers.{layer}.{name}"), f"v.blk.{layer}.{to}", shape)
    return rules


def _merger_rules(source: Source, n_embd: int) -> list[Rule]:
    """Return the rules of two convolutions, a matrix, two norms and the vectors between rows."""
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    rules: list[Rule] = []
    for number, shape in (
        (0, (2 * n_embd, n_embd, _MERGE, _MERGE)),
        (2, (4 * n_embd, 2 * n_embd, 1, 1)),
    ):
        name, target = _named(source, f"perceive.proj.{number}"), f"mm.{number}"
        rules += [
            Rename(
                source=f"{name}.weight",
                target=f"{target}.weight",
                shape=shape,
                precision="f16 or f32",
            ),
            Rename(source=f"{name}.bias", target=f"{target}.bias", shape=shape[:1]),
        ]
    rules += pair(_named(source, "perceive.mlp"), "mm.model.fc", (n_text, 4 * n_embd))
    for name, to, width in (
        ("before_rms", "mm.pre_norm", n_embd),
        ("after_rms", "mm.post_norm", n_text),
    ):
        rules += pair(_named(source, f"perceive.{name}"), to, (width,), bias=False)
    for name, to, width in (
        ("image_newline", "v.image_newline", 4 * n_embd),
        ("image_begin", "mm.image_begin", n_text),
        ("image_end", "mm.image_end", n_text),
        ("image_sep", "v.view_seperator", n_text),
    ):
        rules.append(Rename(source=_named(source, f"perceive.{name}"), target=to, shape=(width,)))
    return rules


FAMILY = Family(
    name="hunyuan_vl",
    architectures=("HunYuanVLForConditionalGeneration",),
    vision_models=("hunyuan_vl_vision", "hunyuan_vl"),
    text_models=(HUNYUAN_VL_TEXT,),
    prefixes=Prefixes(text="model.", vision="vit.", projector="vit."),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span=f"{_BEFORE}{_PAD}{_BEHIND}",
    image_token=_PAD,
    runtime_tokens=(_BEFORE, _BEHIND),
    status="equal to llama.cpp's converter, KLD <= 1e-5 to transformers whose positions are put"
    " right, images of any size",
)
