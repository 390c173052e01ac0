"""Byte-level BPE as HunyuanOCR has it: DeepSeek V3's expressions, Hunyuan's turns.

A person's turn ends in `<|hy_User|>` (with bars and blanks of other scripts), an answer in
`<|hy_Assistant|>`; the template writes what begins a text itself.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME

from tests.synthetic_tokenizer import bpe_merges, byte_letters
from tests.tokenizers.parts import Config, added_token, write_files


def _hy(name: str) -> str:
    return f"<\uff5chy_{name}\uff5c>"


BOS, PAD = _hy("begin\u2581of\u2581sentence"), _hy("\u2581pad\u2581")
USER, ASSISTANT = _hy("User"), _hy("Assistant")
_SYSTEM_END = _hy("place\u2581holder\u2581no\u25813")
BEFORE, IMAGE, BEHIND = (_hy(f"place\u2581holder\u2581no\u2581{n}") for n in (100, 102, 101))
HUNYUAN_LAST = (BOS, PAD, USER, ASSISTANT, _SYSTEM_END, BEFORE, BEHIND, IMAGE)
_TEMPLATE = (
    f"{BOS}{{% for message in messages %}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    f"{BEFORE}{IMAGE}{BEHIND}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    f"{{% if message['role'] == 'system' %}}{_SYSTEM_END}"
    f"{{% elif message['role'] == 'user' %}}{USER}{{% else %}}{ASSISTANT}{{% endif %}}"
    "{% endfor %}"
)


def write_tokenizer_hunyuan(folder: Path, *, n_tokens: int = 300) -> None:
    """Write HunyuanOCR's files."""
    letters = byte_letters()
    merges = list(bpe_merges(n_tokens - len(HUNYUAN_LAST) - len(letters)))
    vocabulary = [*letters, *(left + right for left, right in merges)]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    splits = [
        {
            "type": "Split",
            "pattern": {"Regex": expression},
            "behavior": "Isolated",
            "invert": False,
        }
        for expression in BY_NAME["deepseek-v3"].expressions
    ]
    tokenizer: Config = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(len(vocabulary) + number, name) for number, name in enumerate(HUNYUAN_LAST)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(vocabulary)},
            "merges": [list(merge) for merge in merges],
        },
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "bos_token": BOS,
            "clean_up_tokenization_spaces": False,
            "eos_token": ASSISTANT,
            "extra_special_tokens": {
                "image_end_token": BEHIND,
                "image_start_token": BEFORE,
                "image_token": IMAGE,
            },
            "model_max_length": 2048,
            "pad_token": PAD,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        template=_TEMPLATE,
    )
