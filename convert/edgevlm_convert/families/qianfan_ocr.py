"""Qianfan-OCR: InternVL over Qwen3 under a class of its own.

Facts: config keys and defaults from transformers' `QianfanOCRConfig`, names of its tensors from its
conversion_mapping.py; what its templates print for an image from `QianfanOCRProcessor`. Its layers
compute what InternVL's do: stochastic depth is for training.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.internvl import FAMILY as INTERNVL
from edgevlm_convert.families.internvl import build_internvl
from edgevlm_convert.family import Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.text.qwen3 import QWEN3
from edgevlm_convert.towers.internvit import QIANFAN


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    return build_internvl(source, QIANFAN, is_original=False, numbered=True)


def build_text(source: Source) -> Part:
    """Return rules and metadata of the text model, whose layers are named in either of two ways.

    transformers 5.23 reads `encoder.layers` of the tower as `layers`, and writes both parts of the
    model back as `encoder.layers`.

    Raises:
        CheckpointError: as `build_vision`.
    """
    part = QWEN3.build(source)
    prefix = source.prefixes.text
    if not any(name.startswith(f"{prefix}encoder.layers.") for name in source.shapes):
        return part
    return replace(part, rules=tuple(_below_encoder(rule, prefix) for rule in part.rules))


def _below_encoder(rule: Rule, prefix: str) -> Rule:
    start = f"{prefix}layers."
    if not isinstance(rule, Rename) or not rule.source.startswith(start):
        return rule
    return replace(rule, source=f"{prefix}encoder.layers.{rule.source.removeprefix(start)}")


FAMILY = replace(
    INTERNVL,
    name="qianfan_ocr",
    architectures=("QianfanOCRForConditionalGeneration",),
    vision_models=("qianfan_ocr_vision",),
    text_models=(replace(QWEN3, build=build_text),),
    prefixes=Prefixes(
        text="language_model.model.",
        vision="vision_model.",
        projector="mlp1.",
        head="language_model.lm_head.",
    ),
    projector=Projector(type=INTERNVL.projector.type, build=build_vision),
    template_image="<image>",
    chat_template="",
    refused_texts={},
    status="KLD to transformers <= 1e-5, images of any size",
)
