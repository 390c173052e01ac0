"""What Janus-Pro and DeepSeek-VL share: a SigLIP tower, two layers behind it, grey bars.

Facts: names and metadata from llama.cpp conversion/januspro.py; the graph from
tools/mtmd/models/siglip.cpp (`PROJECTOR_TYPE_JANUS_PRO`), its pixels from tools/mtmd/clip.cpp;
image settings from transformers' `JanusImageProcessor`, which DeepSeek-VL inherits.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source
from edgevlm_convert.metadata import f32, string
from edgevlm_convert.rules import Rule
from edgevlm_convert.towers.vision import TowerSizes, pair, size_metadata
from edgevlm_convert.towers.vit import activation_metadata, embedding_rules, last_norm_rules

PROJECTOR_TYPE = "janus_pro"
_BICUBIC = 3
# The grey that llama.cpp puts beside an image; transformers puts the mean of the settings there.
_GREY = 127


def build_janus_tower(
    source: Source,
    vision: Section,
    sizes: TowerSizes,
    *,
    blocks: list[Rule],
    layers: tuple[str, str],
) -> Part:
    """Return rules and metadata of the mmproj file.

    Args:
        source: of the model.
        vision: the tower's configuration, with its class's defaults.
        sizes: of the tower.
        blocks: rules of its blocks, and of what it leaves out.
        layers: names of the two layers behind it.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    prefix = source.prefixes.vision
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    widths = (sizes.n_embd, n_text)
    return Part(
        rules=(
            *embedding_rules(prefix, sizes),
            *blocks,
            *last_norm_rules(prefix, sizes.n_embd),
            *(
                rule
                for number, (name, n_in) in enumerate(zip(layers, widths, strict=True))
                for rule in pair(
                    f"{source.prefixes.projector}{name}", f"mm.{number}", (n_text, n_in)
                )
            ),
        ),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(PROJECTOR_TYPE),
            "clip.vision.attention.layer_norm_epsilon": f32(
                vision.number("layer_norm_eps", low=1e-12, high=1)
            ),
            **activation_metadata(vision),
        },
        losses=_read_pixels(source.preprocessor, sizes),
    )


def _read_pixels(preprocessor: Section, sizes: TowerSizes) -> tuple[str, ...]:
    """Say what differs in an image's pixels, after refusing what llama.cpp does in one way only."""
    for key in ("do_resize", "do_pad"):
        preprocessor.require(key, (True,), default=True)
    preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    if preprocessor.has("size"):
        size = preprocessor.section("size")
        for side in ("height", "width"):
            size.require(side, (sizes.image_size,), default=sizes.image_size)
    mean = preprocessor.numbers("image_mean", length=3, low=-10, high=10)
    if all(int(255 * value) == _GREY for value in mean):
        return ()
    return (
        f"images that are not square: llama.cpp fills up with the grey {_GREY}, transformers with"
        f" the mean color {[int(255 * value) for value in mean]}",
    )
