"""Video-LLaVA, its images: LLaVA's tower of CLIP and its two layers, beside a tower for videos.

Facts: names of both towers and defaults from transformers' `VideoLlavaModel` and
`VideoLlavaConfig`; how a conversation is written from its documentation ("USER: <image>",
a line feed, the question, "ASSISTANT:"), for a checkpoint without a chat template.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.families.llava import FAMILY as LLAVA
from edgevlm_convert.families.llava import build_vision as build_llava
from edgevlm_convert.family import Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop

_VIDEO_TOWER = ("video_tower.", "model.video_tower.")
_NO_VIDEO = "reads videos: llama.cpp is given images"
_LOSS = "videos: images alone are read"
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    part = build_llava(source)
    videos = (name for name in source.shapes if name.startswith(_VIDEO_TOWER))
    return replace(
        part,
        rules=(*part.rules, *(Drop(source=name, reason=_NO_VIDEO) for name in videos)),
        losses=(*part.losses, _LOSS),
    )


FAMILY = replace(
    LLAVA,
    name="video_llava",
    architectures=("VideoLlavaForConditionalGeneration",),
    vision_models=LLAVA.vision_models[:1],
    prefixes=Prefixes(
        text=LLAVA.prefixes.text,
        vision="image_tower.",
        projector=LLAVA.prefixes.projector,
        head=LLAVA.prefixes.head,
    ),
    projector=Projector(type=LLAVA.projector.type, build=build_vision),
    status="KLD to transformers <= 1e-5; images, no videos",
    chat_template=_CHAT_TEMPLATE,
)
