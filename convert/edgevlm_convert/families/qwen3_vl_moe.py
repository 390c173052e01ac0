"""Qwen3-VL with experts, such as 30B-A3B: Qwen3-VL's tower, joined to Qwen3's mixture.

Facts: config keys from transformers' `Qwen3VLMoeConfig`.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.qwen3_vl import FAMILY as QWEN3_VL
from edgevlm_convert.text.qwen3_moe import QWEN3_VL_MOE

FAMILY = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    architectures=("Qwen3VLMoeForConditionalGeneration",),
    vision_models=("qwen3_vl_moe_vision", "qwen3_vl_moe"),
    text_models=(QWEN3_VL_MOE,),
)
