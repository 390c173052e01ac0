"""Byte-level BPE as other families have it than Qwen2-VL (tests/synthetic_tokenizer.py).

    write_tokenizer_smollm(folder)   # SmolVLM: digits alone, GPT-2's expression; "Assistant:"
    write_tokenizer_llama3(folder)   # Idefics3 over Llama 3: `<|begin_of_text|>` put in front;
                                     # tiles are named in plain text
    write_tokenizer_qwen35(folder)   # Qwen3.5: its own expression; Qwen's vision tokens
    write_tokenizer_tekken(folder)   # Pixtral and Mistral 3: control tokens first, `<s>` in front

All hold the tokens that libmtmd looks up, "\\n\\n" among them where it needs that one; but as in
the published Idefics3-8B (and SmolVLM-Instruct, the first) `<global-img>` is none of Llama 3's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.synthetic_tokenizer import CHAT_TEMPLATE, bpe_merges, byte_letters
from tests.tokenizers.parts import Config, added_token, bos_template, write_files

_ROWS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
_IMAGE = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
_TILES = (*_IMAGE, "<global-img>", *_ROWS)
SMOLLM_FIRST = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_LAST = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
QWEN35_LAST = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<think>", "</think>",
)  # fmt: skip
TEKKEN_FIRST = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
)  # fmt: skip
_NOT_SPECIAL = ("<think>", "</think>")
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}[IMG]{% endif %}{% endfor %}{% endif %}[/INST]"
    "{% elif message['role'] == 'system' %}[SYSTEM_PROMPT]"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %}[/SYSTEM_PROMPT]{% else %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
)
# Idefics3 and SmolVLM print the same turns behind different beginnings.
_TURNS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def write_tokenizer_smollm(folder: Path, *, n_tokens: int = 300, declare: bool = True) -> None:
    """Write SmolVLM's files: SmolLM2's tokenizer and the image tokens."""
    tokens, merges = _bytes_and_merges(n_tokens - len(SMOLLM_FIRST) - len(_TILES))
    names = [*SMOLLM_FIRST, *tokens, *_TILES]
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer = _tokenizer(names, merges, (*SMOLLM_FIRST, *_TILES), n_model=3 + len(tokens))
    tokenizer |= {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [digits, _byte_level(use_regex=True)],
        },
        "decoder": _byte_level(use_regex=True) | {"add_prefix_space": True},
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<end_of_utterance>",
            "extra_special_tokens": {
                "end_of_utterance_token": "<end_of_utterance>",
                "fake_image_token": "<fake_token_around_image>",
                "global_image_token": "<global-img>",
                "image_token": "<image>",
            },
            "model_max_length": 2048,
            "pad_token": "<|im_end|>",
            "processor_class": "SmolVLMProcessor",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
        template="<|im_start|>" + _TURNS,
        declare=declare,
    )


def write_tokenizer_llama3(folder: Path, *, n_tokens: int = 300, declare: bool = True) -> None:
    """Write the files of Idefics3-8B: Llama 3's tokenizer and the image tokens."""
    special = (*LLAMA3_LAST, *_IMAGE)
    tokens, merges = _bytes_and_merges(n_tokens - len(special))
    tokenizer = _tokenizer([*tokens, *special], merges, special, n_model=len(tokens))
    tokenizer["model"]["ignore_merges"] = True
    tokenizer |= {
        "pre_tokenizer": _split(LLAMA3_REGEX),
        "post_processor": {
            "type": "Sequence",
            "processors": [
                _byte_level(use_regex=True),
                bos_template(LLAMA3_LAST[0], len(tokens)),
            ],
        },
        "decoder": _byte_level(use_regex=True) | {"add_prefix_space": True},
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "bos_token": "<|begin_of_text|>",
            "clean_up_tokenization_spaces": True,
            "eos_token": "<|end_of_text|>",
            "model_max_length": 2048,
            "pad_token": "<|end_of_text|>",
            "processor_class": "Idefics3Processor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        template="<|begin_of_text|>" + _TURNS,
        declare=declare,
    )


def write_tokenizer_qwen35(folder: Path, *, n_tokens: int = 300, declare: bool = True) -> None:
    """Write Qwen3.5's files."""
    tokens, merges = _bytes_and_merges(n_tokens - len(QWEN35_LAST))
    tokenizer = _tokenizer([*tokens, *QWEN35_LAST], merges, QWEN35_LAST, n_model=len(tokens))
    plain = _byte_level(use_regex=False)
    tokenizer |= {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _split(QWEN35_REGEX),
        "post_processor": plain,
        "decoder": plain,
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "TokenizersBackend",
            "unk_token": None,
        },
        template=CHAT_TEMPLATE,
        declare=declare,
    )


def write_tokenizer_tekken(folder: Path, *, n_tokens: int = 300, declare: bool = True) -> None:
    """Write the files of Pixtral and Mistral Small 3.1: Tekken as transformers has it."""
    tokens, merges = _bytes_and_merges(n_tokens - len(TEKKEN_FIRST))
    names = [*TEKKEN_FIRST, *tokens]
    tokenizer = _tokenizer(names, merges, TEKKEN_FIRST, n_model=n_tokens)
    tokenizer["model"]["ignore_merges"] = True
    tokenizer |= {
        "pre_tokenizer": _split(TEKKEN_REGEX),
        "post_processor": bos_template("<s>", 1),
        "decoder": _byte_level(use_regex=True) | {"add_prefix_space": True},
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "extra_special_tokens": {
                "image_break_token": "[IMG_BREAK]",
                "image_end_token": "[IMG_END]",
                "image_token": "[IMG]",
            },
            "model_max_length": 2048,
            "pad_token": "<pad>",
            "processor_class": "PixtralProcessor",
            "tokenizer_class": "TokenizersBackend",
            "unk_token": "<unk>",
        },
        template=_MISTRAL_TEMPLATE,
        declare=declare,
    )


def _bytes_and_merges(n_tokens: int) -> tuple[list[str], list[tuple[str, str]]]:
    letters = byte_letters()
    merges = [("Ċ", "Ċ"), *bpe_merges(n_tokens - len(letters) - 1)]
    return [*letters, *(left + right for left, right in merges)], merges


def _tokenizer(
    names: Sequence[str], merges: Sequence[tuple[str, str]], added: Sequence[str], *, n_model: int
) -> Config:
    ids = {name: number for number, name in enumerate(names)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(ids[name], name, special=name not in _NOT_SPECIAL) for name in added
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: number for name, number in ids.items() if number < n_model},
            "merges": [list(merge) for merge in merges],
        },
    }


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(regex: str) -> Config:
    split = {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}
