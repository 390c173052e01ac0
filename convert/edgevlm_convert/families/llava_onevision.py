"""LLaVA-OneVision: SigLIP and Qwen2, tiles as LLaVA-NeXT's, of which a large picture is shrunk.

Facts: as llava_next.py; defaults and what shrinks a picture from transformers'
`LlavaOnevisionConfig`, `LlavaOnevisionImageProcessor` and `LlavaOnevisionModel`
(`pack_image_features`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.config import Section
from edgevlm_convert.families.llava import FAMILY as LLAVA
from edgevlm_convert.families.llava_next import build_anyres
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import u32
from edgevlm_convert.text.qwen2 import QWEN2
from edgevlm_convert.text.qwen3 import QWEN3

_SIDE = 384
_IMAGES: Mapping[str, object] = {
    "image_grid_pinpoints": [
        [_SIDE * rows, _SIDE * columns] for rows in range(1, 7) for columns in range(1, 7)
    ],
    "size": {"height": _SIDE, "width": _SIDE},
}
_DEFAULTS: Mapping[str, object] = {
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
_VISION: Mapping[str, object] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "image_size": _SIDE,
    "patch_size": 14,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}
_MAX_TILES = 144
_SEVERAL = (
    "several images in one prompt: each is cut into tiles as a single one is; transformers shows"
    " each whole, in a square, where they are given as one conversation's"
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    config = source.config.with_defaults(_DEFAULTS)
    vision = source.vision.with_defaults(_VISION)
    tower = {key: vision.raw(key) for key in (*_VISION, *source.vision.keys())}
    config = config.with_values({"vision_config": tower})
    part = build_anyres(replace(source, config=config), _IMAGES)
    return replace(
        part,
        late_metadata={
            **part.late_metadata,
            "edgevlm.anyres_max_tiles": u32(_read_tiles(config)),
        },
        losses=(*part.losses, _SEVERAL),
    )


def _read_tiles(config: Section) -> int:
    """Return the number in `anyres_max_9`."""
    key = "vision_aspect_ratio"
    found = re.fullmatch("anyres_max_([1-9][0-9]{0,2})", config.text(key, default="anyres_max_9"))
    if found is None or int(found[1]) > _MAX_TILES:
        config.fail(key, f"anyres_max_ and a number of tiles from 1 to {_MAX_TILES}")
    return int(found[1])


FAMILY = Family(
    name="llava_onevision",
    architectures=("LlavaOnevisionForConditionalGeneration",),
    vision_models=("siglip_vision_model",),
    text_models=(QWEN2, QWEN3),
    prefixes=LLAVA.prefixes,
    projector=Projector(type=LLAVA.projector.type, build=build_vision),
    image_span="<image>",
    runtime_tokens=(),
    status="KLD to transformers <= 1e-5, images of any size, one a prompt",
)
