"""A byte-level BPE tokenizer in Qwen's form, of any size, with its templates and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

Config = dict[str, Any]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
USER_TOKENS = ("<tool_call>",)
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MERGES = (
    "t h", "th e", "Ġ the", "i n", "a n", "Ġ a", "o n", "r e", "Ġ i", "i s", "Ġi s", "c o", "l o",
    "co lo", "colo r", "Ġ w", "h a", "ha t", "Ġw hat", "i r", "ir c", "irc l", "e r",
)  # fmt: skip


def byte_letters() -> list[str]:
    """Return the letters that byte-level BPE writes for the bytes 0 to 255 (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def bpe_merges(n_merges: int) -> Iterator[tuple[str, str]]:
    """Yield merges of known tokens whose results are all different."""
    known = set(byte_letters())
    made: list[str] = []
    for merge in _MERGES[:n_merges]:
        left, right = merge.split(" ")
        known.add(left + right)
        made.append(left + right)
        yield left, right
    letters = [letter for letter in byte_letters() if letter.isalpha() and letter.isascii()]
    bases = iter([*letters])
    n_left = n_merges - len(made)
    queue: list[str] = []
    while n_left > 0:
        base = next(bases, None) or queue.pop(0)
        for letter in letters:
            if n_left > 0 and base + letter not in known:
                known.add(base + letter)
                queue.append(base + letter)
                n_left -= 1
                yield base, letter


def tokenizer_json(n_tokens: int = 300) -> Config:
    """Return tokenizer.json as Qwen's: bytes, merges, then special tokens outside of the model."""
    letters = byte_letters()
    added = [*SPECIAL_TOKENS, *USER_TOKENS]
    merges = list(bpe_merges(n_tokens - len(letters) - len(added)))
    vocabulary = [*letters, *(left + right for left, right in merges)]
    byte_level: Config = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(vocabulary) + number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token in SPECIAL_TOKENS,
            }
            for number, token in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": QWEN2_REGEX},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {**byte_level, "use_regex": False},
            ],
        },
        "post_processor": {**byte_level, "use_regex": False},
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocabulary)},
            "merges": [list(merge) for merge in merges],
        },
    }


def write_tokenizer(folder: Path, *, n_tokens: int = 300) -> None:
    """Write the tokenizer's files for a vocabulary of `n_tokens` (264 at least)."""
    tokenizer = tokenizer_json(n_tokens)
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: token[key] for key in token if key != "id"}
                for token in cast(list[Config], tokenizer["added_tokens"])
            },
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as UTF-8."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
