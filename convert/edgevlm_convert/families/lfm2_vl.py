"""LFM2-VL and LFM2.5-VL: a SigLIP2 NaFlex tower, pixel unshuffle, two layers, LFM2.

Facts: tensor names and metadata from llama.cpp conversion/lfm2.py; its graph from
tools/mtmd/models/siglip.cpp, image settings from tools/mtmd/clip.cpp (`PROJECTOR_TYPE_LFM2`) and
mtmd-image.h; config keys and defaults from transformers' `Lfm2VlConfig`, `Siglip2VisionConfig`
and `Lfm2VlImageProcessor`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Mapped, Rename, Rule, computed
from edgevlm_convert.shape_rules import Permuted
from edgevlm_convert.text.lfm2 import LFM2
from edgevlm_convert.towers.vision import TowerSizes, pair, read_patch_size, size_metadata
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    activation_metadata,
    block_rules,
    dropped_head_rules,
    last_norm_rules,
    read_vit,
)

_PROJECTOR_TYPE = "lfm2"
_N_PATCHES = 256
_TILE = 512
_BILINEAR = 2
# What llama.cpp does with every image; the class's own defaults are the same.
_IMAGE_SETTINGS: Mapping[str, object] = {
    "do_image_splitting": True,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "tile_size": _TILE,
    "max_pixels_tolerance": 2.0,
}


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the runtime ignores.
    """
    config, vision = source.config, source.vision.with_defaults(SIGLIP_DEFAULTS)
    # transformers reads the whole tower and no such key.
    config.require("vision_feature_layer", (-1,), default=-1)
    config.require("projector_hidden_act", ("gelu", "gelu_pytorch_tanh"), default="gelu")
    sizes = read_vit(vision, image_size=_table_side(vision) * read_patch_size(vision))
    scale = _read_scale(config, sizes.patch_size)
    _check_cells(source.preprocessor, sizes.patch_size, scale)
    prefix = source.prefixes.vision
    projector, zeros = _projector(source, sizes.n_embd * scale**2)
    return Part(
        rules=(
            *_embedding_rules(prefix, sizes),
            *block_rules(prefix, sizes),
            *last_norm_rules(prefix, sizes.n_embd),
            *dropped_head_rules(prefix),
            *projector,
        ),
        computed=zeros,
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.attention.layer_norm_epsilon": f32(
                vision.number("layer_norm_eps", low=1e-12, high=1)
            ),
            "clip.vision.projector.scale_factor": u32(scale),
            **activation_metadata(vision),
        },
        losses=_image_losses(source.preprocessor),
    )


def _table_side(vision: Section) -> int:
    """Return how many patches a side of the position table is for, of any image."""
    n_patches = vision.integer("num_patches", low=1, high=1 << 20, default=_N_PATCHES)
    side = math.isqrt(n_patches)
    if side**2 != n_patches:
        vision.fail("num_patches", "a square number: the table is one of rows and columns")
    return side


def _read_scale(config: Section, patch_size: int) -> int:
    """Return how many patches a side of a visual token has."""
    key = "downsample_factor"
    scale = config.integer(key, low=2, high=64, default=2)
    if _TILE % (scale * patch_size):
        config.fail(key, f"a factor with which a tile of {_TILE} pixels is a number of tokens")
    return scale


def _check_cells(preprocessor: Section, patch_size: int, scale: int) -> None:
    """Refuse image settings that are of another tower, or that llama.cpp knows no other value of.

    Raises:
        CheckpointError: they are.
    """
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_BILINEAR,), default=_BILINEAR)
    preprocessor.require("encoder_patch_size", (patch_size,), default=patch_size)
    preprocessor.require("downsample_factor", (scale,), default=scale)


def _embedding_rules(prefix: str, sizes: TowerSizes) -> list[Rule]:
    """Return the rules of patches and positions.

    NaFlex multiplies rows of a patch's pixels, channels last, where ggml convolves.
    """
    n_embd, side = sizes.n_embd, sizes.patch_size
    return [
        Permuted(
            source=f"{prefix}embeddings.patch_embedding.weight",
            shape=(n_embd, side * side * 3),
            view=(n_embd, side, side, 3),
            axes=(0, 3, 1, 2),
            target="v.patch_embd.weight",
            precision="f16 or f32",
        ),
        Rename(
            source=f"{prefix}embeddings.patch_embedding.bias",
            target="v.patch_embd.bias",
            shape=(n_embd,),
        ),
        Rename(
            source=f"{prefix}embeddings.position_embedding.weight",
            target="v.position_embd.weight",
            shape=(sizes.n_patches, n_embd),
            precision="f32",
        ),
    ]


def _projector(source: Source, n_merged: int) -> tuple[list[Rule], tuple[Mapped, ...]]:
    """Return the rules of norm and layers, and the zeros that stand for biases they lack."""
    config, prefix = source.config, source.prefixes.projector
    n_inner = config.integer("projector_hidden_size", low=1, high=MAX_WIDTH, default=2560)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    bias = config.boolean("projector_bias", default=True)
    norm = pair(f"{prefix}layer_norm", "mm.input_norm", (n_merged,))
    if not config.boolean("projector_use_layernorm", default=True):
        reason = "`projector_use_layernorm` is false: transformers does not read it"
        norm = [Drop(source=name, reason=reason) for rule in norm for name in rule.shapes]
    rules = [
        *norm,
        *pair(f"{prefix}linear_1", "mm.1", (n_inner, n_merged), bias=bias),
        *pair(f"{prefix}linear_2", "mm.2", (n_text, n_inner), bias=bias),
    ]
    if bias:
        return rules, ()
    # The graph adds both without asking whether they are there.
    zeros = {"mm.1.bias": n_inner, "mm.2.bias": n_text}
    return rules, tuple(computed(name, np.zeros(n, np.float32)) for name, n in zeros.items())


def _image_losses(preprocessor: Section) -> tuple[str, ...]:
    """Say which image settings of the checkpoint are others than llama.cpp's."""
    given = preprocessor.with_defaults(_IMAGE_SETTINGS)
    others = [
        f"{key} {given.raw(key)}"
        for key, usual in _IMAGE_SETTINGS.items()
        if given.raw(key) != usual
    ]
    if not others:
        return ()
    return (
        f"image settings: llama.cpp has 64 to 256 visual tokens, for twice as many 2 to 10 tiles of"
        f" {_TILE} pixels and a thumbnail; this checkpoint has {', '.join(others)}",
    )


FAMILY = Family(
    name="lfm2_vl",
    architectures=("Lfm2VlForConditionalGeneration",),
    vision_models=("siglip2_vision_model",),
    text_models=(LFM2,),
    prefixes=Prefixes(
        text="model.language_model.",
        vision="model.vision_tower.",
        projector="model.multi_modal_projector.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<image>",
    runtime_tokens=("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
