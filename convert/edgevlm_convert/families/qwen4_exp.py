"""Qwen4-Exp: Qwen3-VL's tower without deepstack, and a hybrid with several residual streams.

Facts: config keys from transformers' `Qwen4ExpConfig`.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.qwen3_5 import FAMILY as QWEN3_5
from edgevlm_convert.text.qwen4_exp import QWEN4_EXP

FAMILY = replace(
    QWEN3_5,
    name="qwen4_exp",
    architectures=("Qwen4ExpForConditionalGeneration",),
    vision_models=("qwen4_exp_vision", "qwen4_exp"),
    text_models=(QWEN4_EXP,),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5 in contexts within the"
    " indexer's budget; no published checkpoint was at hand",
)
