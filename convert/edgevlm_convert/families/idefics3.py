"""Idefics3, SmolVLM and SmolVLM2: a SigLIP ViT over the tiles of an image, pixel shuffle, Llama.

Facts: tensor names and metadata from llama.cpp conversion/smolvlm.py; its graph from
tools/mtmd/models/siglip.cpp, its tiles from tools/mtmd/mtmd-image.cpp; config keys and defaults
from transformers' `Idefics3Config`, `Idefics3VisionConfig` (SmolVLM's are the same) and
`Idefics3ImageProcessor`.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rename
from edgevlm_convert.text.llama import LLAMA
from edgevlm_convert.towers.vision import TowerSizes, size_metadata
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    activation_metadata,
    block_rules,
    embedding_rules,
    last_norm_rules,
    read_vit,
)

_PROJECTOR_TYPE = "idefics3"
_VISION_DEFAULTS = {
    **SIGLIP_DEFAULTS,
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "patch_size": 32,
}
_TILE, _LONGEST_EDGE = 364, 4 * 364
# transformers scales what is larger down to this (`MAX_IMAGE_SIZE`).
_MAX_EDGE = 4096
_LANCZOS = 1


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the runtime ignores.
    """
    vision = source.vision.with_defaults(_VISION_DEFAULTS)
    sizes = read_vit(vision)
    scale = _read_scale(source.config, sizes)
    longest_edge, losses = _read_tiles(source.preprocessor, sizes.image_size)
    prefix = source.prefixes.vision
    n_out = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    projection = Rename(
        source=f"{source.prefixes.projector}modality_projection.proj.weight",
        target="mm.model.fc.weight",
        shape=(n_out, scale**2 * sizes.n_embd),
    )
    return Part(
        rules=(
            *embedding_rules(prefix, sizes, precision="f32"),
            *block_rules(prefix, sizes),
            *last_norm_rules(prefix, sizes.n_embd),
            projection,
        ),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.attention.layer_norm_epsilon": f32(
                vision.number("layer_norm_eps", low=1e-12, high=1)
            ),
            "clip.vision.projector.scale_factor": u32(scale),
            **activation_metadata(vision),
            "clip.vision.preproc_image_size": u32(longest_edge),
        },
        losses=losses,
    )


def _read_scale(config: Section, sizes: TowerSizes) -> int:
    """Return how many patches a side of a visual token has."""
    side = sizes.image_size // sizes.patch_size
    scale = config.integer("scale_factor", low=2, high=64, default=2)
    if side % scale:
        config.fail("scale_factor", f"a divisor of the {side} patches of a tile's side")
    return scale


def _read_tiles(preprocessor: Section, tile: int) -> tuple[int, tuple[str, ...]]:
    """Return the longest edge that an image is scaled to before it is cut, and what is lost.

    llama.cpp always sends the tiles and then the whole image, transformers only the latter when
    splitting is off or one tile holds the image.
    """
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_LANCZOS,), default=_LANCZOS)
    largest = _edge(preprocessor, "max_image_size", default=_TILE)
    if largest != tile:
        preprocessor.fail("max_image_size", f"{{'longest_edge': {tile}}}, the tower's image_size")
    longest = min(_edge(preprocessor, "size", default=_LONGEST_EDGE), _MAX_EDGE)
    if preprocessor.boolean("do_image_splitting", default=True) and longest > tile:
        return longest, ()
    return tile, (
        "one tile: transformers encodes the whole image once, llama.cpp encodes it twice, as a"
        " tile and as the overview, and tells the model so",
    )


def _edge(preprocessor: Section, key: str, *, default: int) -> int:
    """Return `longest_edge` of a size, in pixels."""
    size = preprocessor.section(key) if preprocessor.has(key) else preprocessor.empty(key)
    if not size.has("longest_edge") and (size.has("height") or size.has("width")):
        size.fail("longest_edge", "a number of pixels: llama.cpp keeps the proportions of an image")
    return size.integer("longest_edge", low=1, high=1 << 20, default=default)


FAMILY = Family(
    name="idefics3",
    architectures=("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
    vision_models=(
        "idefics3_vision",
        "smolvlm_vision",
        "idefics3",
        "smolvlm",
        "siglip_vision_model",
    ),
    text_models=(LLAMA,),
    prefixes=Prefixes(
        text="model.text_model.", vision="model.vision_model.", projector="model.connector."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<image>",
    # libmtmd looks up `<global-img>` too; where it is no token the runtime here writes its text.
    runtime_tokens=("\n\n", "<fake_token_around_image>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
