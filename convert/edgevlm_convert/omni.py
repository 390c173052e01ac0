"""Checkpoints that also hear and speak (Qwen-Omni): what answers in text, and what is left out.

Facts: sections and names of tensors from transformers' `Qwen2_5OmniConfig`, `Qwen3OmniMoeConfig`
and conversion_mapping.py ("Qwen2_5OmniThinkerForConditionalGeneration").
"""

from __future__ import annotations

import re

from edgevlm_convert.config import Section
from edgevlm_convert.family import Source
from edgevlm_convert.rules import Drop

_THINKER = "thinker_config"
# Keys of the whole checkpoint that its thinker's section does not repeat.
_OF_WHOLE = ("architectures", "quantization_config")
_EARS = re.compile(r"(thinker\.)?(model\.)?audio_tower\.")
_VOICE = re.compile(r"(talker|token2wav|code2wav)\.")
_NO_SOUND = "hears: llama.cpp is given text and images"
_NO_SPEECH = "speaks: llama.cpp answers in text"
SOUND_LOSS = "sound and speech: the model reads images and text alone, and answers in text"


def thinker_of(config: Section) -> Section:
    """Return the section of config.json that answers in text: of most checkpoints, all of it.

    A whole Qwen-Omni nests it beside what speaks.
    """
    if not config.has(_THINKER):
        return config
    whole = {key: config.raw(key) for key in _OF_WHOLE if config.has(key)}
    return config.section(_THINKER).with_values(whole)


def ears_and_voice(source: Source) -> list[Drop]:
    """Return the rules of the tensors that hear or speak, which are left out by name."""
    return [
        *(Drop(source=name, reason=_NO_SOUND) for name in source.shapes if _EARS.match(name)),
        *(Drop(source=name, reason=_NO_SPEECH) for name in source.shapes if _VOICE.match(name)),
    ]
