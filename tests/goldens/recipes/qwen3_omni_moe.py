"""Qwen3-Omni, its thinker: Qwen3-VL's golden with experts, other names of mergers, beside ears."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.convert.mutations import mmproj, swap
from tests.goldens.omni_checkpoints import AUDIO, FREE_NUMBERS, as_vl
from tests.goldens.recipe import Config
from tests.goldens.recipes import qwen3_vl_moe

_VL = qwen3_vl_moe.RECIPE
_TEXT: Config = {**_VL.config["text_config"], "model_type": "qwen3_omni_moe_text"}
# The class's name of the number; the other one is Qwen3-VL's alone.
_TEXT["num_experts"] = _TEXT.pop("num_local_experts")
_CONFIG: Config = {
    **_VL.config,
    "architectures": ["Qwen3OmniMoeThinkerForConditionalGeneration"],
    "audio_config": {**AUDIO, "model_type": "qwen3_omni_moe_audio_encoder", "output_dim": 96},
    # Of the padding: the tiny tokenizer has none of these.
    "audio_start_token_id": 318,
    "audio_token_id": 319,
    "model_type": "qwen3_omni_moe_thinker",
    "position_id_per_seconds": 13,
    "text_config": _TEXT,
    "vision_config": {
        **_VL.config["vision_config"],
        "deepstack_visual_indexes": [2, 0],
        "model_type": "qwen3_omni_moe_vision_encoder",
        "out_hidden_size": 96,
    },
}
_TOWER = {
    ".merger_list.": ".deepstack_merger_list.",
    ".ln_q.": ".norm.",
    ".mlp.0.": ".linear_fc1.",
    ".mlp.2.": ".linear_fc2.",
}

RECIPE = replace(
    _VL,
    name="qwen3_omni_moe",
    config=_CONFIG,
    model_class="Qwen3OmniMoeThinkerForConditionalGeneration",
    prompts=_VL.prompts[:3],
    adapt=partial(
        as_vl,
        names=("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"),
        tower=_TOWER,
        joined=False,
    ),
    outtypes=("auto",),
    free_numbers=(*_VL.free_numbers, *FREE_NUMBERS),
    gains={"mlp.gate.": 3.0, "merger.mlp.2.weight": 4.0, "merger_list.": 2.0},
    seed=20261128,
    mutations={
        **_VL.mutations,
        "deepstack mergers exchanged": mmproj(swap("v.deepstack.0.", "v.deepstack.2.")),
    },
)
