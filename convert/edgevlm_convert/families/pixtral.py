"""Pixtral: a vision tower with rotary positions, joined by two layers to Mistral or Llama.

Its class in transformers is LLaVA's; the vision tower tells them apart. Facts: see
towers/pixtral.py; config keys from transformers' `LlavaConfig`.
"""

from __future__ import annotations

from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.llama import LLAMA, MISTRAL
from edgevlm_convert.towers.pixtral import Joint, build_pixtral, image_losses
from edgevlm_convert.towers.vision import read_patch_size

_PROJECTOR_TYPE = "pixtral"


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
        ConversionError: the tokenizer has no `[IMG_BREAK]`.
    """
    config = source.config
    config.require("vision_feature_layer", (-1,), default=-2)
    config.require("vision_feature_select_strategy", ("full",), default="default")
    patch_size = read_patch_size(source.vision.with_defaults({"patch_size": 16}))
    return build_pixtral(
        source,
        Joint(
            projector_type=_PROJECTOR_TYPE,
            n_merged=1,
            merges=False,
            bias=config.boolean("multimodal_projector_bias", default=True),
            breaks_rows=True,
            losses=image_losses(source.preprocessor, patch_size),
        ),
    )


FAMILY = Family(
    name="pixtral",
    architectures=("LlavaForConditionalGeneration",),
    vision_models=("pixtral",),
    text_models=(MISTRAL, LLAMA),
    prefixes=Prefixes(
        text="language_model.model.",
        vision="vision_tower.",
        projector="multi_modal_projector.",
        head="language_model.lm_head.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="[IMG]",
    runtime_tokens=("[IMG_END]",),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
    names_vision=True,
)
