"""Gemma 4's tokenizer.json: SentencePiece's pieces and merges, no tokenizer.model.

    write_tokenizer_gemma4(folder)   # `<|image|>` is the last id

Ids as published: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, `<mask>` 4. Newlines and runs of
spaces are pieces like any other; the tokens of turns, channels and images are special ones.
"""

from __future__ import annotations

from pathlib import Path

from tests.tokenizers.parts import (
    NORMAL,
    Config,
    Piece,
    added_token,
    bpe_pieces,
    byte_pieces,
    merges_of,
    write_files,
)

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_TURNS = ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|image>", "<image|>", "<|image|>")
_SPACES = ("\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581")
_NAMED = {
    "bos_token": "<bos>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "eos_token": "<eos>",
    "eot_token": "<turn|>",
    "image_token": "<|image|>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "sot_token": "<|turn>",
    "unk_token": "<unk>",
}
_MODEL_SPECIFIC = ("boi_token", "eoi_token", "eot_token", "image_token", "sot_token")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|turn>' + role + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<turn|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}"
)


def write_tokenizer_gemma4(folder: Path, *, n_tokens: int = 320) -> None:
    """Write Gemma 4's files, in which every row of the embedding has a token."""
    n_others = len(_SPECIAL) + len(_SPACES) + 256 + len(_TURNS)
    pieces = [
        *(Piece(text=text, type=0) for text in _SPECIAL),
        *(Piece(text=text, type=NORMAL) for text in _SPACES),
        *byte_pieces(),
        *bpe_pieces(n_tokens - n_others),
        *(Piece(text=text, type=0) for text in _TURNS),
    ]
    settings = {
        **_NAMED,
        "extra_special_tokens": {name: _NAMED[name] for name in _MODEL_SPECIFIC},
        "model_max_length": 2048,
        "padding_side": "left",
        "processor_class": "Gemma4Processor",
        "tokenizer_class": "GemmaTokenizer",
    }
    write_files(
        folder, tokenizer=_tokenizer(pieces), settings=settings, template=_TEMPLATE, declare=False
    )


def _tokenizer(pieces: list[Piece]) -> Config:
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(ids[text], text) for text in (*_SPECIAL, *_TURNS)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
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
            "vocab": ids,
            "merges": merges_of(pieces),
        },
    }
