"""Cosmos 3, its reasoner alone: Qwen3-VL under flat names, beside what makes videos and sound.

Facts: names of its tensors from transformers' conversion_mapping.py ("cosmos3_omni"), what belongs
to the other towers from its `Cosmos3OmniPreTrainedModel`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.families.qwen3_vl import FAMILY as QWEN3_VL
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Rename, Rule
from edgevlm_convert.text.qwen3 import QWEN3_VL as TEXT

# Attention's names in diffusers' style, which newer checkpoints have.
_DIFFUSERS: Mapping[str, str] = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_ATTENTION = ".self_attn."
_OTHER_TOWERS = re.compile(
    r"\.(add_[qkv]_proj|to_add_out|norm_added_[qk])\.|moe_gen|^proj_(in|out)\.|^time_embedder\."
    r"|^(audio|action)_(proj_(in|out)\.|modality_embed$)"
)
_NO_MAKING = "makes videos, sound or actions: llama.cpp answers in text"


def build_text(source: Source) -> Part:
    """Return rules and metadata of the text model, and what the other towers' tensors are left to.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    part = TEXT.build(source)
    renamed = any(f"{_ATTENTION}to_q." in name for name in source.shapes)
    dropped = [
        Drop(source=name, reason=_NO_MAKING) for name in source.shapes if _OTHER_TOWERS.search(name)
    ]
    rules = (_diffusers(rule) if renamed else rule for rule in part.rules)
    return replace(part, rules=(*rules, *dropped))


def _diffusers(rule: Rule) -> Rule:
    if not isinstance(rule, Rename) or _ATTENTION not in rule.source:
        return rule
    block, _, name = rule.source.partition(_ATTENTION)
    matrix, _, kind = name.partition(".")
    return replace(rule, source=f"{block}{_ATTENTION}{_DIFFUSERS[matrix]}.{kind}")


FAMILY = replace(
    QWEN3_VL,
    name="cosmos3_omni",
    architectures=("Cosmos3OmniForConditionalGeneration",),
    text_models=(replace(TEXT, build=build_text),),
    prefixes=Prefixes(text="", vision="", projector=""),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5; answers in text alone; no"
    " published checkpoint was at hand",
)
