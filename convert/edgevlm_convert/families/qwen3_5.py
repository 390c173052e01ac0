"""Qwen3.5 (and 3.6, 3.8, of the same class): Qwen3-VL's tower without deepstack, and a hybrid.

Facts: config keys from transformers' `Qwen3_5Config`; what a chat template prints for an image from
the published ones.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.qwen3_vl import FAMILY as QWEN3_VL
from edgevlm_convert.family import Part, Projector, Source
from edgevlm_convert.text.qwen3_5 import QWEN3_5
from edgevlm_convert.towers.qwen3 import PROJECTOR_TYPE, build_qwen3_tower


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    return build_qwen3_tower(source, deepstack=())


FAMILY = replace(
    QWEN3_VL,
    name="qwen3_5",
    architectures=("Qwen3_5ForConditionalGeneration",),
    vision_models=("qwen3_5_vision", "qwen3_5"),
    text_models=(QWEN3_5,),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5, MTP layers or not",
)
