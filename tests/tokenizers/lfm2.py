"""Byte-level BPE as LFM2-VL has it: control tokens first, Llama 3's expression, BOS in front."""

from __future__ import annotations

from pathlib import Path

from tests.synthetic_tokenizer import bpe_merges, byte_letters
from tests.tokenizers.byte_level import LLAMA3_REGEX
from tests.tokenizers.parts import Config, added_token, bos_template, write_files

LFM2_FIRST = (
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>",
    "<|img_row_1_col_1|>", "<|img_row_1_col_2|>", "<|img_row_2_col_1|>", "<|img_row_2_col_2|>",
    "<|img_thumbnail|>", "<|image_start|>", "<|image_end|>",
)  # fmt: skip
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer_lfm2(folder: Path, *, n_tokens: int = 300, declare: bool = True) -> None:
    """Write the files of LFM2-VL."""
    merges = [*bpe_merges(n_tokens - len(LFM2_FIRST) - 256)]
    names = [*LFM2_FIRST, *byte_letters(), *(left + right for left, right in merges)]
    write_files(
        folder,
        tokenizer=_tokenizer(names, merges),
        settings={
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<|startoftext|>",
            "clean_up_tokenization_spaces": True,
            "eos_token": "<|im_end|>",
            "image_end_token": "<|image_end|>",
            "image_start_token": "<|image_start|>",
            "image_thumbnail": "<|img_thumbnail|>",
            "image_token": "<image>",
            "model_max_length": 2048,
            "pad_token": "<|pad|>",
            "processor_class": "Lfm2VlProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        template=_TEMPLATE,
        declare=declare,
    )


def _tokenizer(names: list[str], merges: list[tuple[str, str]]) -> Config:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA3_REGEX},
        "behavior": "Isolated",
        "invert": False,
    }
    plain = byte_level | {"use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(number, name) for number, name in enumerate(LFM2_FIRST)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, plain]},
        "post_processor": {
            "type": "Sequence",
            "processors": [byte_level | {"use_regex": True}, bos_template("<|startoftext|>", 1)],
        },
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
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [list(merge) for merge in merges],
        },
    }
