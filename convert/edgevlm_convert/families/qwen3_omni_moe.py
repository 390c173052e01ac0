"""Qwen3-Omni, what it sees: Qwen3-VL's tower and its text model of experts beside ears and a voice.

Facts: names of the tower's mergers from transformers' modeling_qwen3_omni_moe.py, defaults from its
`Qwen3OmniMoeTextConfig`; an image's positions are Qwen3-VL's, for its one frame stands at second 0
(`get_rope_index`). Features of the tower join layers of the text model as in Qwen3-VL, which
llama.cpp's own converter leaves out of the text model's file (conversion/qwen3vl.py).
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.qwen3_vl_moe import FAMILY as QWEN3_VL_MOE
from edgevlm_convert.family import Part, Projector, Source
from edgevlm_convert.omni import SOUND_LOSS, ears_and_voice
from edgevlm_convert.text.qwen3_moe import QWEN3_VL_MOE as TEXT
from edgevlm_convert.text.qwen3_moe import build_with_sections
from edgevlm_convert.towers.qwen3 import MergerNames, build_qwen3_tower, read_deepstack

_TEXT_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 3584,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
_THETA = 1_000_000.0
_MERGERS = MergerNames(deepstack="merger_list", norm="ln_q", first="mlp.0", second="mlp.2")


def build_text(source: Source) -> Part:
    """Return rules and metadata of the text model, and what ears and voice are left to.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    # llama.cpp makes the weights of a token's experts one in all.
    source.text.require("norm_topk_prob", (True,), default=True)
    part = build_with_sections(source, default_theta=_THETA)
    return replace(part, rules=(*part.rules, *ears_and_voice(source)))


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    part = build_qwen3_tower(source, deepstack=read_deepstack(source), names=_MERGERS)
    return replace(part, losses=(SOUND_LOSS,))


FAMILY = replace(
    QWEN3_VL_MOE,
    name="qwen3_omni_moe",
    architectures=(
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "Qwen3OmniMoeForConditionalGeneration",
    ),
    vision_models=("qwen3_omni_moe_vision_encoder",),
    text_models=(
        replace(
            TEXT, model_types=("qwen3_omni_moe_text",), defaults=_TEXT_DEFAULTS, build=build_text
        ),
    ),
    projector=Projector(type=QWEN3_VL_MOE.projector.type, build=build_vision),
    status="equal to llama.cpp's converter of Qwen3-VL, KLD to transformers <= 1e-5; no sound, no"
    " speech",
)
