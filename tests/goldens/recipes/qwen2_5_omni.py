"""Qwen2.5-Omni, its thinker: Qwen2.5-VL's golden with query, key and value apart, beside ears."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.goldens.omni_checkpoints import AUDIO, FREE_NUMBERS, as_vl
from tests.goldens.recipe import Config
from tests.goldens.recipes import qwen2_5_vl
from tests.tokenizers.omni import write_tokenizer_omni

_VL = qwen2_5_vl.RECIPE
_IDS = {
    "image_token_index": _VL.config["image_token_id"],
    "video_token_index": _VL.config["video_token_id"],
    "vision_start_token_id": _VL.config["vision_start_token_id"],
    "vision_end_token_id": _VL.config["vision_end_token_id"],
    # Of the padding: the tiny tokenizer has none of these.
    "audio_token_index": 319,
    "audio_start_token_id": 318,
    "audio_end_token_id": 317,
}
_CONFIG: Config = {
    "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
    "audio_config": {
        **AUDIO,
        "model_type": "qwen2_5_omni_audio_encoder",
        "output_dim": 96,
    },
    "dtype": "bfloat16",
    "model_type": "qwen2_5_omni_thinker",
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
    "text_config": {
        **_VL.config["text_config"],
        "model_type": "qwen2_5_omni_text",
        # As transformers writes it, and does not read it: it asks the outer one.
        "tie_word_embeddings": True,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        **_VL.config["vision_config"],
        "model_type": "qwen2_5_omni_vision_encoder",
        "out_hidden_size": 96,
    },
    **_IDS,
}

# Windows are 4 x 4 visual tokens: two of them in 3 x 5 tokens, none whole.
_PROMPTS = (
    _VL.prompts[0],
    ("one image", "What is in the image?", ("84x140-1",)),
    ("another image", "What is in the image?", ("84x140-2",)),
)
RECIPE = replace(
    _VL,
    name="qwen2_5_omni",
    config=_CONFIG,
    write_tokenizer=write_tokenizer_omni,
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    image_token=_IDS["image_token_index"],
    prompts=_PROMPTS,
    adapt=partial(
        as_vl,
        names=("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
        tower={},
        joined=True,
    ),
    outtypes=("auto",),
    free_numbers=(*_VL.free_numbers, *FREE_NUMBERS),
    seed=20261128,
)
