"""Granite 4 Vision: SigLIP over an image's overview and tiles, Q-Formers, Granite.

Facts: metadata from llama.cpp conversion/granite.py; its graph from
tools/mtmd/models/granite4-vision.cpp, its tiles from tools/mtmd/mtmd-image.cpp
(`mtmd_image_preprocessor_granite`); config keys and defaults from transformers'
`Granite4VisionConfig` and `SiglipVisionConfig`.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import array, boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.text.granite import GRANITE
from edgevlm_convert.towers.anyres import read_grids
from edgevlm_convert.towers.granite4 import (
    read_qformer,
    read_streams,
    read_windows,
    stream_rules,
    unused_rules,
)
from edgevlm_convert.towers.vision import TowerSizes, size_metadata
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    block_rules,
    dropped_head_rules,
    embedding_rules,
    last_norm_rules,
    read_vit,
)

_PROJECTOR_TYPE = "granite4_vision"
_BICUBIC = 3
# Of the projectors' first norms; the graph gives them that of the tower.
_EPSILON = 1e-6


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    config, prefix = source.config, source.prefixes.vision
    vision = source.vision.with_defaults(SIGLIP_DEFAULTS)
    sizes = read_vit(vision)
    vision.require("layer_norm_eps", (_EPSILON,), default=_EPSILON)
    vision.require("hidden_act", ("gelu_pytorch_tanh", "gelu"), default="gelu_pytorch_tanh")
    config.require("vision_feature_select_strategy", ("full",), default="default")
    source.preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    windows, streams = read_windows(config, sizes), read_streams(source)
    return Part(
        rules=(
            *embedding_rules(prefix, sizes, precision="f32"),
            *block_rules(prefix, sizes),
            *last_norm_rules(prefix, sizes.n_embd),
            *dropped_head_rules(prefix),
            *_projector_rules(source, sizes),
        ),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.attention.layer_norm_epsilon": f32(_EPSILON),
            "clip.use_gelu": boolean(True),
            "clip.vision.preproc_image_size": u32(sizes.image_size),
            "clip.vision.projector.query_side": u32(windows.tokens),
            "clip.vision.projector.window_side": u32(windows.patches),
            "clip.vision.feature_layer": array("INT32", [stream.tower_layer for stream in streams]),
            "clip.vision.projector.spatial_offsets": array(
                "INT32", [stream.offset for stream in streams]
            ),
            "clip.vision.image_grid_pinpoints": array(
                "INT32", read_grids(config, sizes.image_size)
            ),
        },
    )


def _projector_rules(source: Source, sizes: TowerSizes) -> list[Rule]:
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    windows, n_ff = read_windows(source.config, sizes), read_qformer(source.config, sizes)
    prefix, streams = source.prefixes.projector, read_streams(source)
    rules: list[Rule] = [
        Rename(source=f"{prefix}image_newline", target="v.image_newline", shape=(n_text,))
    ]
    for number, stream in enumerate(streams):
        target = f"v.proj_blk.{number}."
        rules += stream_rules(
            f"{prefix}{stream.source}", target, sizes, windows, n_ff=n_ff, n_text=n_text
        )
    n_spatial = sum(stream.offset >= 0 for stream in streams)
    return rules + unused_rules(prefix, n_spatial, sizes, windows)


FAMILY = Family(
    name="granite4_vision",
    architectures=("Granite4VisionForConditionalGeneration",),
    vision_models=("siglip_vision_model",),
    text_models=(GRANITE,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.vision_tower.", projector="model."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<image>\n",
    runtime_tokens=(),
    status="KLD to transformers <= 1e-5, images of any size; no published checkpoint was at hand",
)
