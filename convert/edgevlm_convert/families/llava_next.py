"""LLaVA-NeXT (LLaVA 1.6): the tower and the layers of LLaVA, over an image's overview and tiles.

Facts: as llava.py; config keys and defaults from transformers' `LlavaNextConfig`, settings of
images from `LlavaNextImageProcessor`; the vector that ends a row and the grids from
tools/mtmd/clip-impl.h (`TN_IMAGE_NEWLINE`, `KEY_IMAGE_GRID_PINPOINTS`). libmtmd cuts images by the
grids, and joins nothing: edgevlm's own engine does (edgevlm/runtime/anyres_canvas.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.families.llava import FAMILY as LLAVA
from edgevlm_convert.families.llava import build_tower
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import array
from edgevlm_convert.rules import Rename
from edgevlm_convert.towers.anyres import read_grids
from edgevlm_convert.towers.vision import read_image_size
from edgevlm_convert.towers.vit import SIGLIP_DEFAULTS

_VIDEO = "LlavaNextVideoForConditionalGeneration"
_NO_VIDEO = "videos: images alone are read"
_NEWLINES = ("image_newline", "model.image_newline")
_MAX_TILES = 144
# Both classes' own, where a configuration says nothing.
_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_SIZE = {"shortest_edge": 224}


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    part = build_anyres(source, {"image_grid_pinpoints": _GRIDS, "size": _SIZE})
    is_video = _VIDEO in source.config.texts("architectures")
    return replace(part, losses=(*part.losses, _NO_VIDEO)) if is_video else part


def build_anyres(source: Source, usual: Mapping[str, object]) -> Part:
    """Return rules and metadata of the mmproj file of a class whose images are cut and joined.

    Args:
        source: of the model.
        usual: grids and size of images where its files say nothing.

    Raises:
        CheckpointError: as `build_vision`.
    """
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    tower = build_tower(source)
    name = next((name for name in _NEWLINES if name in source.shapes), _NEWLINES[0])
    grids = _read_grids(source, usual)
    return replace(
        tower,
        rules=(
            *tower.rules,
            Rename(source=name, target="v.image_newline", shape=(n_text,), precision="f32"),
        ),
        late_metadata={
            **tower.late_metadata,
            "clip.vision.image_grid_pinpoints": array("INT32", grids),
        },
    )


def _read_grids(source: Source, usual: Mapping[str, object]) -> list[int]:
    """Return widths and heights, after refusing tiles of another size than the tower's.

    Raises:
        CheckpointError: model and image processor disagree.
    """
    # CLIP's default is the same.
    side = read_image_size(source.vision.with_defaults(SIGLIP_DEFAULTS))
    config, images = (one.with_defaults(usual) for one in (source.config, source.preprocessor))
    grids = read_grids(config, side)
    if read_grids(images, side) != grids:
        images.fail("image_grid_pinpoints", "what config.json says")
    if any(math.prod(grids[at : at + 2]) > _MAX_TILES * side**2 for at in range(0, len(grids), 2)):
        config.fail("image_grid_pinpoints", f"grids of at most {_MAX_TILES} tiles")
    _check_side(images, "size", side)
    if images.has("crop_size"):
        _check_side(images, "crop_size", side)
    return grids


def _check_side(images: Section, key: str, side: int) -> None:
    """Refuse another size of tiles than the tower's; a number alone is that of both sides."""
    section = images.with_values({key: {"shortest_edge": images.raw(key)}})
    section = (images if isinstance(images.raw(key), dict) else section).section(key)
    names = ("height", "width") if section.has("height") else ("shortest_edge",)
    for name in names:
        if section.raw(name) != side:
            section.fail(name, f"{side}, the side of the tower's image")


FAMILY = Family(
    name="llava_next",
    architectures=("LlavaNextForConditionalGeneration", _VIDEO),
    vision_models=LLAVA.vision_models,
    text_models=LLAVA.text_models,
    prefixes=LLAVA.prefixes,
    projector=Projector(type=LLAVA.projector.type, build=build_vision),
    image_span="<image>",
    runtime_tokens=(),
    status="KLD to transformers <= 1e-5, images of any size",
)
