"""Video-LLaVA: LLaVA's golden with CLIP, beside a tower for videos that has other weights."""

from __future__ import annotations

from dataclasses import replace

from tests.goldens.llava_checkpoints import (
    IMAGE_TOKEN,
    clip_config,
    preprocessor,
    read_as_it_is,
    square_prompts,
)
from tests.goldens.recipe import Config
from tests.goldens.recipes import llava
from tests.tokenizers.llama_spm import write_tokenizer_llava

_LLAVA = llava.CLIP_LLAMA
# Of another rotary scaling, or too faint to be heard through images as small as these.
_LLAVAS_OWN = (
    "no rotary factors",
    "vision norms with another epsilon",
    "gelu for quick-gelu",
)
_CONFIG: Config = {
    **clip_config(
        text={
            "model_type": "llama",
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        }
    ),
    "architectures": ["VideoLlavaForConditionalGeneration"],
    "image_seq_length": 25,
    "model_type": "video_llava",
    "video_seq_length": 208,
    # Of the padding: the tiny tokenizer has no such token.
    "video_token_index": IMAGE_TOKEN + 10,
}
_CONFIG["vision_config"] |= {"image_size": 40}

RECIPE = replace(
    _LLAVA,
    name="video_llava",
    config=_CONFIG,
    preprocessor={
        **preprocessor(_CONFIG),
        "image_processor_type": "VideoLlavaImageProcessor",
        "processor_class": "VideoLlavaProcessor",
    },
    write_tokenizer=read_as_it_is(write_tokenizer_llava),
    model_class="VideoLlavaForConditionalGeneration",
    prompts=square_prompts(_CONFIG)[:3],
    adapt=None,
    refused="llama.cpp's converter does not know transformers' class",
    refused_mmproj="",
    free_numbers=(
        *_LLAVA.free_numbers,
        "image_seq_length",
        "video_seq_length",
        "video_token_index",
    ),
    mutations={name: one for name, one in _LLAVA.mutations.items() if name not in _LLAVAS_OWN},
)
