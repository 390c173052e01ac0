"""Gemma 3's SentencePiece BPE: byte fallback, no space in front, many user-defined pieces.

    write_tokenizer_gemma(folder)   # `<image_soft_token>` is the last id, outside tokenizer.model

Ids as published: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, `<mask>` 4, then `<unusedN>`,
`<start_of_turn>`, `<end_of_turn>`, newlines and runs of spaces as user-defined pieces, bytes,
pieces, `<start_of_image>`, `<end_of_image>`.
"""

from __future__ import annotations

from pathlib import Path

from tests.tokenizers.parts import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
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

SOFT_TOKEN = "<image_soft_token>"
# (text, type, special in tokenizer.json)
FIRST = (
    ("<pad>", CONTROL, True),
    ("<eos>", CONTROL, True),
    ("<bos>", CONTROL, True),
    ("<unk>", UNKNOWN, True),
    ("<mask>", USER_DEFINED, False),
    ("[multimodal]", USER_DEFINED, False),
    ("<unused0>", USER_DEFINED, False),
    ("<unused1>", USER_DEFINED, False),
    ("<start_of_turn>", USER_DEFINED, True),
    ("<end_of_turn>", USER_DEFINED, True),
    ("\n", USER_DEFINED, False),
    ("\n\n", USER_DEFINED, False),
    ("▁▁", USER_DEFINED, False),
    ("▁▁▁", USER_DEFINED, False),
    ("<h1>", USER_DEFINED, False),
)
_LAST = (("<start_of_image>", USER_DEFINED, True), ("<end_of_image>", USER_DEFINED, True))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def write_tokenizer_gemma(
    folder: Path, *, n_tokens: int = 300, model: bool = True, declare: bool = True
) -> None:
    """Write Gemma 3's files; without `model` there is no tokenizer.model."""
    first = [Piece(text=text, type=kind) for text, kind, _ in FIRST]
    last = [Piece(text=text, type=kind) for text, kind, _ in _LAST]
    n_others = len(first) + 256 + len(last) + 1
    pieces = [*first, *byte_pieces(), *bpe_pieces(n_tokens - n_others), *last]
    proto = sentencepiece_model(pieces, unk_id=3, add_dummy_prefix=False)
    write_files(
        folder,
        tokenizer=_tokenizer(pieces),
        settings={
            "add_bos_token": True,
            "add_eos_token": False,
            "boi_token": "<start_of_image>",
            "bos_token": "<bos>",
            "clean_up_tokenization_spaces": False,
            "eoi_token": "<end_of_image>",
            "eos_token": "<eos>",
            "extra_special_tokens": {
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": SOFT_TOKEN,
            },
            "image_token": SOFT_TOKEN,
            "model_max_length": 2048,
            "pad_token": "<pad>",
            "processor_class": "Gemma3Processor",
            "sp_model_kwargs": None,
            "spaces_between_special_tokens": False,
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
        template=TEMPLATE,
        model=proto if model else None,
        declare=declare,
    )


def _tokenizer(pieces: list[Piece]) -> Config:
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    added = [added_token(ids[text], text, special=flag) for text, _, flag in (*FIRST, *_LAST)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*added, added_token(len(pieces), SOFT_TOKEN)],
        "normalizer": replace,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": bos_template("<bos>", 2),
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
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
