"""GLM-OCR: a tower with norms over heads and no table of positions, and a small GLM-4.

Facts: what the graph fixes from tools/mtmd/models/glm4v.cpp; config keys, defaults and widths from
transformers' `GlmOcrVisionConfig` and modeling_glm_ocr.py; the image span from its chat template.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.glm4v import FAMILY as GLM4V
from edgevlm_convert.family import Part, Projector, Source
from edgevlm_convert.text.glm4 import GLM_OCR_TEXT
from edgevlm_convert.towers.glm import PROJECTOR_TYPE, GlmTower, build_glm_tower, read_glm_sizes
from edgevlm_convert.towers.qwen import read_n_out

_DEFAULTS = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "out_hidden_size": 1536,
}
# transformers makes the merger as many times wider as an image has colors.
_N_COLORS = 3


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    sizes = read_glm_sizes(vision)
    bias = vision.boolean("attention_bias", default=True)
    n_out = read_n_out(source, "out_hidden_size")
    tower = GlmTower(
        sizes=sizes,
        n_out=n_out,
        n_ff=sizes.n_ff,
        n_merged=_N_COLORS * n_out,
        qkv_bias=bias,
        block_bias=bias,
        head_norms=True,
        learned_positions=False,
    )
    return build_glm_tower(source, vision, tower)


FAMILY = replace(
    GLM4V,
    name="glm_ocr",
    architectures=("GlmOcrForConditionalGeneration",),
    vision_models=("glm_ocr_vision", "glm_ocr"),
    text_models=(GLM_OCR_TEXT,),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5, images of any size",
)
