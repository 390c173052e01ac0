"""DeepSeek-VL of one tower (1.3B): SigLIP, two layers, Llama.

Facts: config keys from transformers' `DeepseekVLConfig`; llama.cpp has no converter of this class,
and its graph of Janus-Pro computes the same. The rest in towers/janus.py.
"""

from __future__ import annotations

from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.llama import LLAMA
from edgevlm_convert.towers.janus import PROJECTOR_TYPE, build_janus_tower
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    block_rules,
    dropped_head_rules,
    read_vit,
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(SIGLIP_DEFAULTS)
    sizes, prefix = read_vit(vision), source.prefixes.vision
    return build_janus_tower(
        source,
        vision,
        sizes,
        blocks=[*block_rules(prefix, sizes), *dropped_head_rules(prefix)],
        layers=("linear1", "linear2"),
    )


FAMILY = Family(
    name="deepseek_vl",
    architectures=("DeepseekVLForConditionalGeneration",),
    vision_models=("siglip_vision_model",),
    text_models=(LLAMA,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.vision_model.", projector="model.aligner."
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<image_placeholder>",
    runtime_tokens=(),
    status="KLD to transformers <= 1e-5",
)
