"""GLM-4.1V to GLM-4.6V, dense and with experts: a tower with a table of positions, and GLM-4.

Facts: what the graph fixes from tools/mtmd/models/glm4v.cpp; config keys, defaults and widths from
transformers' `Glm4vVisionConfig` and modeling_glm4v.py; the image span from its chat template.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.glm4 import GLM4V_TEXT
from edgevlm_convert.text.glm4_moe import GLM4V_MOE_TEXT
from edgevlm_convert.towers.glm import PROJECTOR_TYPE, GlmTower, build_glm_tower, read_glm_sizes
from edgevlm_convert.towers.qwen import read_n_out

_DEFAULTS = {
    "depth": 24,
    "hidden_size": 1536,
    "intermediate_size": 13696,
    "num_heads": 12,
    "image_size": 336,
    "patch_size": 14,
    "rms_norm_eps": 1e-5,
    "out_hidden_size": 4096,
}


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    sizes = read_glm_sizes(vision)
    tower = GlmTower(
        sizes=sizes,
        n_out=read_n_out(source, "out_hidden_size"),
        # The names are exchanged in transformers: `intermediate_size` is the merger's.
        n_ff=vision.integer("out_hidden_size", low=1, high=MAX_WIDTH),
        n_merged=sizes.n_ff,
        qkv_bias=vision.boolean("attention_bias", default=False),
        block_bias=False,
        head_norms=False,
        learned_positions=True,
    )
    return build_glm_tower(source, vision, tower)


FAMILY = Family(
    name="glm4v",
    architectures=(
        "Glm4vForConditionalGeneration",
        "Glm46VForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
    ),
    vision_models=("glm4v_vision", "glm4v", "glm4v_moe_vision", "glm4v_moe"),
    text_models=(GLM4V_TEXT, GLM4V_MOE_TEXT),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.visual.", projector="model.visual."
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<|begin_of_image|><|image|><|end_of_image|>",
    image_token="<|image|>",
    runtime_tokens=("<|begin_of_image|>", "<|end_of_image|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5, images of any size",
)
