"""Byte-level BPE as GLM-4.1V and GLM-OCR have it: Llama 3's expression, GLM's turns.

What a turn ends with is the token of the next one; no token is put in front of a text, the
template writes `[gMASK]<sop>` itself.
"""

from __future__ import annotations

from pathlib import Path

from tests.synthetic_tokenizer import bpe_merges, byte_letters
from tests.tokenizers.byte_level import LLAMA3_REGEX
from tests.tokenizers.parts import Config, added_token, write_files

GLM_LAST = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>",
    "<think>", "</think>",
)  # fmt: skip
_NOT_SPECIAL = ("<think>", "</think>")
_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}\n<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}"
)


def write_tokenizer_glm(folder: Path, *, n_tokens: int = 300, declare: bool = True) -> None:
    """Write the files of GLM-4.1V and GLM-OCR."""
    letters = byte_letters()
    merges = list(bpe_merges(n_tokens - len(GLM_LAST) - len(letters)))
    vocabulary = [*letters, *(left + right for left, right in merges)]
    write_files(
        folder,
        tokenizer=_tokenizer(vocabulary, merges),
        settings={
            "clean_up_tokenization_spaces": False,
            "do_lower_case": False,
            "eos_token": "<|endoftext|>",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "processor_class": "Glm46VProcessor",
            "remove_space": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        template=_TEMPLATE,
        declare=declare,
    )


def _tokenizer(vocabulary: list[str], merges: list[tuple[str, str]]) -> Config:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA3_REGEX},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(len(vocabulary) + number, name, special=name not in _NOT_SPECIAL)
            for number, name in enumerate(GLM_LAST)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level | {"use_regex": False}],
        },
        "post_processor": byte_level | {"trim_offsets": False, "use_regex": True},
        "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {name: number for number, name in enumerate(vocabulary)},
            "merges": [list(merge) for merge in merges],
        },
    }
