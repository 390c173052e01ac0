"""SentencePiece BPE as PaddleOCR-VL has it: no space in front of a text, no token either.

The template writes `<|begin_of_sentence|>` itself.
"""

from __future__ import annotations

from pathlib import Path

from tests.tokenizers.parts import (
    CONTROL,
    UNKNOWN,
    Config,
    Piece,
    added_token,
    bpe_pieces,
    byte_pieces,
    merges_of,
    sentencepiece_model,
    write_files,
)

_FIRST = (
    Piece(text="<unk>", type=UNKNOWN),
    Piece(text="<s>", type=CONTROL),
    Piece(text="</s>", type=CONTROL),
)
ERNIE_LAST = (
    "<|begin_of_sentence|>",
    "<|end_of_sentence|>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
)
_TEMPLATE = (
    "<|begin_of_sentence|>{% for message in messages %}"
    "{% if message['role'] == 'user' %}User: {% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '\\n' }}{% elif message['role'] == 'assistant' %}Assistant:\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}</s>{% else %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)


def write_tokenizer_ernie(
    folder: Path, *, n_tokens: int = 300, model: bool = True, declare: bool = True
) -> None:
    """Write PaddleOCR-VL's files; without `model` there is no tokenizer.model."""
    pieces = [*_FIRST, *byte_pieces()]
    pieces += bpe_pieces(n_tokens - len(pieces) - len(ERNIE_LAST))
    proto = sentencepiece_model(pieces, unk_id=0, add_dummy_prefix=False)
    write_files(
        folder,
        tokenizer=_tokenizer(pieces),
        settings={
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "cls_token": "<|begin_of_sentence|>",
            "eos_token": "</s>",
            "legacy": True,
            "model_max_length": 2048,
            "pad_token": "<unk>",
            "sep_token": "<|end_of_sentence|>",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
        template=_TEMPLATE,
        model=proto if model else None,
        declare=declare,
    )


def _tokenizer(pieces: list[Piece]) -> Config:
    names = [*(piece.text for piece in _FIRST), *ERNIE_LAST]
    last = range(len(pieces), len(pieces) + len(ERNIE_LAST))
    space, line = {"String": " "}, {"String": "▁"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(number, name)
            for number, name in zip([*range(len(_FIRST)), *last], names, strict=True)
        ],
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": line, "content": " "},
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
            "vocab": {piece.text: number for number, piece in enumerate(pieces)},
            "merges": merges_of(pieces),
        },
    }
