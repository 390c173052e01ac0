"""Gemma 3, also MedGemma: SigLIP's ViT, averaged to 256 tokens an image, joined to Gemma 3.

Facts: tensor names and metadata from llama.cpp conversion/gemma.py, what the graph computes from
tools/mtmd/models/siglip.cpp; config keys from transformers' `Gemma3Config`.
"""

from __future__ import annotations

import math

from edgevlm_convert.config import MAX_WIDTH
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rename, Transform
from edgevlm_convert.text.gemma3 import GEMMA3
from edgevlm_convert.towers.vision import TowerSizes, size_metadata
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    activation_metadata,
    block_rules,
    dropped_head_rules,
    embedding_rules,
    last_norm_rules,
    read_vit,
)
from edgevlm_convert.transforms import plus_one

_PROJECTOR_TYPE = "gemma3"
_N_IMAGE_TOKENS = 256
# Patches a side that become one token, when a file does not say.
_USUAL_POOL = 4
_BILINEAR = 2


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision, prefix = source.vision.with_defaults(SIGLIP_DEFAULTS), source.prefixes.vision
    sizes = read_vit(vision)
    pool = _read_pool(source, sizes)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    epsilon = vision.number("layer_norm_eps", low=1e-12, high=1.0)
    late: dict[str, Value] = {
        **size_metadata(source, sizes),
        "clip.projector_type": string(_PROJECTOR_TYPE),
        "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
        **activation_metadata(vision),
    }
    if pool != _USUAL_POOL:
        late["clip.vision.projector.scale_factor"] = u32(pool)
    return Part(
        rules=(
            *embedding_rules(prefix, sizes, precision="f32"),
            *block_rules(prefix, sizes),
            *last_norm_rules(prefix, sizes.n_embd),
            *dropped_head_rules(prefix),
            # The graph transposes it, which no quantized type allows, and BF16 not everywhere.
            Rename(
                source=f"{source.prefixes.projector}mm_input_projection_weight",
                target="mm.input_projection.weight",
                shape=(sizes.n_embd, n_text),
                precision="f16",
            ),
            Transform(
                source=f"{source.prefixes.projector}mm_soft_emb_norm.weight",
                target="mm.soft_emb_norm.weight",
                shape=(sizes.n_embd,),
                rows=plus_one,
            ),
        ),
        late_metadata=late,
        losses=_losses(source),
    )


def _read_pool(source: Source, sizes: TowerSizes) -> int:
    """Return how many patches a side are averaged into one token.

    Raises:
        CheckpointError: tokens that do not divide the patches, or images of another size.
    """
    n_tokens = source.config.integer(
        "mm_tokens_per_image", low=1, high=1 << 20, default=_N_IMAGE_TOKENS
    )
    n_side, n_patches = math.isqrt(n_tokens), sizes.image_size // sizes.patch_size
    if n_side**2 != n_tokens or n_side > n_patches or n_patches % n_side:
        source.config.fail(
            "mm_tokens_per_image", f"the square of a divisor of {n_patches}, the patches of a side"
        )
    preprocessor = source.preprocessor
    preprocessor.require("resample", (_BILINEAR,), default=_BILINEAR)
    if preprocessor.has("size"):
        for side in ("height", "width"):
            size = preprocessor.section("size")
            size.require(side, (sizes.image_size,), default=sizes.image_size)
    return n_patches // n_side


def _losses(source: Source) -> tuple[str, ...]:
    if not source.preprocessor.boolean("do_pan_and_scan", default=False):
        return ()
    return ("pan and scan: llama.cpp shows the whole image once, without the crops of wide ones",)


FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForConditionalGeneration",),
    vision_models=("siglip_vision_model",),
    text_models=(GEMMA3,),
    prefixes=Prefixes(
        text="language_model.model.",
        vision="vision_tower.",
        projector="multi_modal_projector.",
        head="language_model.lm_head.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<start_of_image>",
    image_token="<image_soft_token>",
    runtime_tokens=("<start_of_image>", "<end_of_image>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
