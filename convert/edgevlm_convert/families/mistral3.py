"""Mistral 3: Pixtral's tower and a merger of patches over Mistral or Ministral 3.

Mistral Small 3.1 and 3.2, Ministral 3. Facts: see towers/pixtral.py; config keys from transformers'
`Mistral3Config`.
"""

from __future__ import annotations

from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.mistral3 import MINISTRAL3, MISTRAL3
from edgevlm_convert.towers.pixtral import Joint, build_pixtral, image_losses, read_n_merged
from edgevlm_convert.towers.vision import read_patch_size

_PROJECTOR_TYPE = "pixtral"


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
        ConversionError: the tokenizer has no `[IMG_BREAK]`.
    """
    config = source.config
    config.require("vision_feature_layer", (-1,), default=-1)
    n_merged = read_n_merged(config)
    cell = n_merged * read_patch_size(source.vision.with_defaults({"patch_size": 16}))
    return build_pixtral(
        source,
        Joint(
            projector_type=_PROJECTOR_TYPE,
            n_merged=n_merged,
            merges=True,
            bias=config.boolean("multimodal_projector_bias", default=False),
            breaks_rows=True,
            losses=image_losses(source.preprocessor, cell),
        ),
    )


FAMILY = Family(
    name="mistral3",
    architectures=("Mistral3ForConditionalGeneration",),
    vision_models=("pixtral",),
    text_models=(MISTRAL3, MINISTRAL3),
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
)
