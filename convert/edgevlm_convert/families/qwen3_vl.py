"""Qwen3-VL: a ViT with deepstack, joined to Qwen3.

Facts: config keys from transformers' `Qwen3VLConfig`; what a chat template prints for an image from
the published ones.
"""

from __future__ import annotations

from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.qwen3 import QWEN3_VL
from edgevlm_convert.towers.qwen3 import PROJECTOR_TYPE, build_qwen3_tower, read_deepstack


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    return build_qwen3_tower(source, deepstack=read_deepstack(source))


FAMILY = Family(
    name="qwen3_vl",
    architectures=("Qwen3VLForConditionalGeneration",),
    vision_models=("qwen3_vl_vision", "qwen3_vl"),
    text_models=(QWEN3_VL,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.visual.", projector="model.visual."
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<|vision_start|><|image_pad|><|vision_end|>",
    image_token="<|image_pad|>",
    runtime_tokens=("<|vision_start|>", "<|vision_end|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
