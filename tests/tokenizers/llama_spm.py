"""Llama's SentencePiece BPE, as LLaVA-1.5 and LLaVA-NeXT over Mistral have it.

    write_tokenizer_llava(folder)          # `<image>` 298, `<pad>` 299; "USER: <image> ..."
    write_tokenizer_llava_mistral(folder)  # the same pieces; "[INST] <image> ... [/INST]"

Embeddings are padded beyond the tokens (LLaVA-1.5: 32064 rows for 32002 tokens). `text_config` is
Llama's or Mistral's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tokenizers.parts import (
    CONTROL,
    UNKNOWN,
    Config,
    Piece,
    added_token,
    bos_template,
    bpe_pieces,
    byte_pieces,
    merges_of,
    sentencepiece_model,
    write_files,
)

ADDED = ("<image>", "<pad>")
_FIRST = (
    Piece(text="<unk>", type=UNKNOWN),
    Piece(text="<s>", type=CONTROL),
    Piece(text="</s>", type=CONTROL),
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MISTRAL_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ '</s>' }}{% endif %}{% endfor %}"
)


def write_tokenizer_llava(
    folder: Path, *, n_tokens: int = 300, model: bool = True, declare: bool = True
) -> None:
    """Write LLaVA-1.5's files; without `model` there is no tokenizer.model."""
    _write(folder, n_tokens, _LLAVA_TEMPLATE, model, declare, processor_class="LlavaProcessor")


def write_tokenizer_llava_mistral(
    folder: Path, *, n_tokens: int = 300, model: bool = True, declare: bool = True
) -> None:
    """Write the files of LLaVA-NeXT over Mistral 7B."""
    _write(
        folder, n_tokens, _MISTRAL_TEMPLATE, model, declare, processor_class="LlavaNextProcessor"
    )


def _write(
    folder: Path, n_tokens: int, template: str, model: bool, declare: bool, **settings: Any
) -> None:
    pieces = [*_FIRST, *byte_pieces()]
    pieces += bpe_pieces(n_tokens - len(pieces) - len(ADDED))
    proto = sentencepiece_model(pieces, unk_id=0, add_dummy_prefix=True)
    write_files(
        folder,
        tokenizer=_tokenizer(pieces),
        settings={
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": None,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "extra_special_tokens": {"image_token": "<image>"},
            "image_token": "<image>",
            "legacy": False,
            "model_max_length": 2048,
            "pad_token": "<pad>",
            "padding_side": "left",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
            **settings,
        },
        template=template,
        model=proto if model else None,
        declare=declare,
    )


def _tokenizer(pieces: list[Piece]) -> Config:
    names = [*(piece.text for piece in _FIRST), *ADDED]
    numbers = [0, 1, 2, len(pieces), len(pieces) + 1]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(number, name) for number, name in zip(numbers, names, strict=True)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
        },
        "pre_tokenizer": None,
        "post_processor": bos_template("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: number for number, piece in enumerate(pieces)},
            "merges": merges_of(pieces),
        },
    }
