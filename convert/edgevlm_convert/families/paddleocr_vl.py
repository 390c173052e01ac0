"""PaddleOCR-VL: a SigLIP tower with rotary positions for images of any size, joined to ERNIE 4.5.

Facts: tensor names and metadata from llama.cpp conversion/ernie.py; what the graph fixes from
tools/mtmd/models/paddleocr.cpp and clip.cpp (`PROJECTOR_TYPE_PADDLEOCR`); config keys and defaults
from transformers' `PaddleOCRVisionConfig` and `PaddleOCRVLImageProcessor`, names of the published
checkpoints from its conversion_mapping.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgevlm_convert.config import Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Rule
from edgevlm_convert.text.ernie4_5 import PADDLEOCR_TEXT
from edgevlm_convert.towers.vision import TowerSizes, pair, size_metadata
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    block_rules,
    dropped_head_rules,
    embedding_rules,
    last_norm_rules,
    read_vit,
)

_PROJECTOR_TYPE = "paddleocr"
_DEFAULTS: Mapping[str, object] = {
    **SIGLIP_DEFAULTS,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_MERGE = 2
_BICUBIC = 3
# Of an image: far above what models publish, 3600.
_MAX_TOKENS = 1 << 16
_USUAL_PIXELS = {"min": 384**2, "max": 1536**2}


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    sizes = _read_sizes(vision)
    least, most = _read_pixels(source.preprocessor, sizes.patch_size)
    prefix = source.prefixes.vision
    epsilon = vision.number("layer_norm_eps", low=1e-12, high=1.0)
    return Part(
        rules=(
            *embedding_rules(prefix, sizes),
            *block_rules(prefix, sizes),
            *last_norm_rules(prefix, sizes.n_embd),
            *_unused_rules(prefix),
            *_projector_rules(source, sizes.n_embd),
        ),
        late_metadata={
            **size_metadata(source, sizes),
            # llama.cpp's converter writes the side of the largest square; its graph asks the table.
            "clip.vision.image_size": u32(math.isqrt(most)),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.image_max_pixels": u32(most),
            "clip.vision.image_min_pixels": u32(least),
            "clip.use_gelu": boolean(True),
            "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
        },
    )


def _read_sizes(vision: Section) -> TowerSizes:
    """Return the tower's sizes, after refusing what the graph computes in one way only."""
    vision.require("hidden_act", ("gelu_pytorch_tanh", "gelu"), default="gelu_pytorch_tanh")
    vision.require("spatial_merge_size", (_MERGE,), default=_MERGE)
    sizes = read_vit(vision)
    if (sizes.n_embd // sizes.n_head) % 4:
        vision.fail("num_attention_heads", "heads whose channels divide by 4: pairs of two axes")
    if vision.has("rope_parameters"):
        rope = vision.section("rope_parameters")
        rope.require("rope_theta", (10000, 10000.0), default=10000)
        rope.require("rope_type", ("axial", "default"), default="axial")
    return sizes


def _read_pixels(preprocessor: Section, patch_size: int) -> tuple[int, int]:
    """Return the least and the most pixels that an image is stretched to.

    Raises:
        CheckpointError: bounds that are absurd, or settings that the runtime does not have.
    """
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    preprocessor.require("patch_size", (patch_size,), default=patch_size)
    preprocessor.require("merge_size", (_MERGE,), default=_MERGE)
    preprocessor.require("temporal_patch_size", (1,), default=1)
    area = (patch_size * _MERGE) ** 2
    most = _bound(preprocessor, "max", "longest_edge", low=area, high=_MAX_TOKENS * area)
    return _bound(preprocessor, "min", "shortest_edge", low=1, high=most), most


def _bound(preprocessor: Section, name: str, edge: str, *, low: int, high: int) -> int:
    """Return one bound, which transformers 4 and 5 keep in different places."""
    size = preprocessor.section("size") if preprocessor.has("size") else preprocessor.empty("size")
    key, usual = f"{name}_pixels", _USUAL_PIXELS[name]
    for section, found in ((preprocessor, key), (size, edge), (size, key)):
        if section.has(found):
            return section.integer(found, low=low, high=high)
    return min(max(usual, low), high)


def _unused_rules(prefix: str) -> list[Rule]:
    """Return the rules of what published checkpoints hold and no model reads."""
    return [
        Drop(
            source=f"{prefix}embeddings.packing_position_embedding.weight",
            reason="positions by number; the model interpolates its square table",
        ),
        *dropped_head_rules(prefix),
    ]


def _projector_rules(source: Source, n_embd: int) -> list[Rule]:
    """Return the rules of the merger: a norm over patches, two layers over 2 x 2 of them."""
    prefix, merged = source.prefixes.projector, _MERGE**2 * n_embd
    n_out = source.text.integer("hidden_size", low=1, high=1 << 20)
    return [
        *pair(f"{prefix}pre_norm", "mm.input_norm", (n_embd,)),
        *pair(f"{prefix}linear_1", "mm.1", (merged, merged)),
        *pair(f"{prefix}linear_2", "mm.2", (n_out, merged)),
    ]


FAMILY = Family(
    name="paddleocr_vl",
    architectures=("PaddleOCRVLForConditionalGeneration",),
    vision_models=("paddleocr_vl_vision", "paddleocr_vl"),
    text_models=(PADDLEOCR_TEXT,),
    prefixes=Prefixes(
        text="model.language_model.",
        vision="model.visual.vision_model.",
        projector="model.projector.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
    image_token="<|IMAGE_PLACEHOLDER|>",
    runtime_tokens=("<|IMAGE_START|>", "<|IMAGE_END|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5, images of any size",
)
