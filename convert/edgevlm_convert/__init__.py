"""Turn a Hugging Face vision-language checkpoint into GGUF, without torch or llama.cpp."""

from __future__ import annotations

from edgevlm_convert.plan import ConversionPlan, OuttypeOption, convert_checkpoint, plan_conversion
from edgevlm_convert.rules import Ledger

__all__ = ["ConversionPlan", "Ledger", "OuttypeOption", "convert_checkpoint", "plan_conversion"]
