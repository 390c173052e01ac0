"""Qwen2-VL: a ViT of any image size, joined to Qwen2.

Facts: tensor names and metadata from llama.cpp conversion/qwenvl.py; what the graph fixes from
tools/mtmd/models/qwen2vl.cpp; config keys and defaults from transformers' `Qwen2VLVisionConfig`,
where `hidden_size` is the text model's width and `embed_dim` the tower's.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.qwen2 import QWEN2_VL
from edgevlm_convert.towers.qwen2 import DEFAULTS, build_qwen2_tower, check_qwen2_tower
from edgevlm_convert.towers.vision import TowerSizes, read_image_size, read_tower

_PROJECTOR_TYPE = "qwen2vl_merger"
_DEFAULTS = {**DEFAULTS, "embed_dim": 1280, "mlp_ratio": 4}


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    return build_qwen2_tower(
        source,
        _read_tower(source.vision.with_defaults(_DEFAULTS)),
        projector_type=_PROJECTOR_TYPE,
        n_out_key="hidden_size",
        norm_bias=True,
        mlp={"fc1": "ffn_up", "fc2": "ffn_down"},
        # No key for the activation: quick-gelu, which the class has as its default.
        metadata={},
    )


def _read_tower(vision: Section) -> TowerSizes:
    vision.require("hidden_act", ("quick_gelu",), default="quick_gelu")
    n_embd = vision.integer("embed_dim", low=1, high=MAX_WIDTH)
    sizes = read_tower(
        vision,
        layers="depth",
        heads="num_heads",
        image_size=read_image_size(vision),
        n_embd="embed_dim",
        n_ff=int(n_embd * vision.number("mlp_ratio", low=1 / n_embd, high=64)),
    )
    check_qwen2_tower(vision, sizes, n_ff_key="mlp_ratio")
    return sizes


FAMILY = Family(
    name="qwen2_vl",
    architectures=("Qwen2VLForConditionalGeneration",),
    vision_models=("qwen2_vl_vision", "qwen2_vl"),
    text_models=(QWEN2_VL,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.visual.", projector="model.visual."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|vision_start|><|image_pad|><|vision_end|>",
    image_token="<|image_pad|>",
    runtime_tokens=("<|vision_start|>", "<|vision_end|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5 except for the epsilon of"
    " the text model's norms, which this llama.cpp leaves out",
)
