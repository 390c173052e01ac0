"""Qwen2.5-Omni, what it sees: Qwen2.5-VL's tower and text model beside ears and a voice.

Facts: names of tensors from transformers' modeling_qwen2_5_omni.py, where the tower's query, key
and value are apart; defaults from its `Qwen2_5OmniTextConfig`; an image's positions are
Qwen2.5-VL's, for its one frame stands at second 0 (`get_rope_index`); what the chat template prints
for an image from the published one, whose tokens libmtmd does not know (tools/mtmd/mtmd.cpp writes
Qwen2.5-VL's): edgevlm puts them around the image itself.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.qwen2_5_vl import FAMILY as QWEN2_5_VL
from edgevlm_convert.families.qwen2_5_vl import build_windowed_tower
from edgevlm_convert.family import Part, Projector, Source
from edgevlm_convert.omni import SOUND_LOSS, ears_and_voice
from edgevlm_convert.text.qwen2 import QWEN2_VL

_TEXT_DEFAULTS = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 152064,
    "sliding_window": 32768,
    "max_window_layers": 28,
}
_FRAME_LOSS = (
    "llama.cpp itself writes `<|vision_start|>` and `<|vision_end|>` around an image, which are"
    " plain text to this model; edgevlm writes its own two tokens"
)


def build_text(source: Source) -> Part:
    """Return rules and metadata of the text model, and what ears and voice are left to.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    # transformers asks the thinker's key alone; the text model's is true unless it says otherwise.
    tied = source.config.boolean("tie_word_embeddings", default=False)
    text = source.text.with_values({"tie_word_embeddings": tied})
    part = QWEN2_VL.build(replace(source, text=text))
    return replace(part, rules=(*part.rules, *ears_and_voice(source)))


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    part = build_windowed_tower(source, joined=False)
    return replace(part, losses=(SOUND_LOSS, _FRAME_LOSS))


FAMILY = replace(
    QWEN2_5_VL,
    name="qwen2_5_omni",
    architectures=(
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniModel",
    ),
    vision_models=("qwen2_5_omni_vision_encoder",),
    text_models=(
        replace(
            QWEN2_VL,
            model_types=("qwen2_5_omni_text",),
            defaults=_TEXT_DEFAULTS,
            build=build_text,
        ),
    ),
    projector=Projector(type=QWEN2_5_VL.projector.type, build=build_vision),
    image_span="<|vision_bos|><|IMAGE|><|vision_eos|>",
    image_token="<|IMAGE|>",
    runtime_tokens=("<|vision_bos|>", "<|vision_eos|>"),
    status="equal to llama.cpp's converter of Qwen2.5-VL, KLD to transformers <= 1e-5 except for"
    " the epsilon of the text model's norms, which this llama.cpp leaves out; no sound, no speech",
)
