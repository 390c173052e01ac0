"""Qwen3.5 with experts, such as 35B-A3B.

Facts: config keys from transformers' `Qwen3_5MoeConfig`.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.qwen3_5 import FAMILY as QWEN3_5
from edgevlm_convert.text.qwen3_5 import QWEN3_5_MOE

FAMILY = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    architectures=("Qwen3_5MoeForConditionalGeneration",),
    vision_models=("qwen3_5_moe_vision", "qwen3_5_moe"),
    text_models=(QWEN3_5_MOE,),
)
