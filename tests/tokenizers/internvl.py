"""InternVL's tokenizer: Qwen's, with tokens around an image and in its place.

write_tokenizer_internvl(folder)                # as transformers' form is published
write_tokenizer_opengvlab(folder)               # as OpenGVLab's own form is: a template without
                                                # images, vocab.json and merges.txt
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.synthetic_tokenizer import CHAT_TEMPLATE, Config, tokenizer_json, write_json
from tests.tokenizers.parts import token_ids, write_files

_NAMES = {
    "<|vision_start|>": "<img>",
    "<|vision_end|>": "</img>",
    "<|image_pad|>": "<IMG_CONTEXT>",
    "<|video_pad|>": "<video>",
}
_SETTINGS: Config = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "model_max_length": 2048,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}
_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|vision_start|><|image_pad|><|vision_end|>", "{{ '<IMG_CONTEXT>\\n' }}"
)
# As Qwen2.5's: text and nothing else.
_TEXT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer_internvl(folder: Path, *, n_tokens: int = 300) -> None:
    """Write the files of InternVL in transformers' form."""
    tokens = {
        "context_image_token": "<IMG_CONTEXT>",
        "end_image_token": "</img>",
        "start_image_token": "<img>",
        "video_token": "<video>",
    }
    write_files(
        folder,
        tokenizer=_tokenizer(n_tokens),
        settings={**_SETTINGS, "extra_special_tokens": tokens},
        template=_TEMPLATE,
    )


def write_tokenizer_opengvlab(folder: Path, *, n_tokens: int = 300) -> None:
    """Write the files of InternVL 2.5 and 3 as OpenGVLab has them."""
    tokenizer = _tokenizer(n_tokens)
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={**_SETTINGS, "add_eos_token": False, "chat_template": _TEXT_TEMPLATE},
        template="",
    )
    (folder / "chat_template.jinja").unlink()
    write_json(folder / "added_tokens.json", token_ids(folder))
    write_json(folder / "vocab.json", tokenizer["model"]["vocab"])
    lines = ["#version: 0.2", *(" ".join(merge) for merge in tokenizer["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def _tokenizer(n_tokens: int) -> Config:
    text = json.dumps(tokenizer_json(n_tokens))
    for name, other in _NAMES.items():
        text = text.replace(json.dumps(name), json.dumps(other))
    return json.loads(text)
