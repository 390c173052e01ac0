"""Gemma 3n's SentencePiece BPE: Gemma 3's pieces, and ids of its own for images and sound.

    write_tokenizer_gemma3n(folder)   # ids 304 and 305 end an image and stand for it

As published: `<start_of_image>` and `<start_of_audio>` are pieces; what ends an image or sound, and
what stands for it, follows behind the text's own ids, outside tokenizer.model, at the start of the
vocabulary of a tower.
"""

from __future__ import annotations

from pathlib import Path

from tests.tokenizers.gemma import FIRST, TEMPLATE
from tests.tokenizers.parts import (
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

N_TEXT, N_TOWER = 304, 2
SOFT_TOKEN = "<image_soft_token>"
_BEGINS = ("<start_of_image>", "<start_of_audio>")
# By id: the first two of each tower's vocabulary.
TOWER_TOKENS = {
    N_TEXT: "<end_of_image>",
    N_TEXT + 1: SOFT_TOKEN,
    N_TEXT + N_TOWER: "<end_of_audio>",
    N_TEXT + N_TOWER + 1: "<audio_soft_token>",
}
_NAMED = {
    "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>",
    "boi_token": "<start_of_image>",
    "eoa_token": "<end_of_audio>",
    "eoi_token": "<end_of_image>",
    "image_token": SOFT_TOKEN,
}


def write_tokenizer_gemma3n(folder: Path) -> None:
    """Write Gemma 3n's files: 304 pieces, and four tokens behind them."""
    first = [Piece(text=text, type=kind) for text, kind, _ in FIRST]
    last = [Piece(text=text, type=USER_DEFINED) for text in _BEGINS]
    n_others = len(first) + 256 + len(last)
    pieces = [*first, *byte_pieces(), *bpe_pieces(N_TEXT - n_others), *last]
    write_files(
        folder,
        tokenizer=_tokenizer(pieces),
        settings={
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<bos>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<eos>",
            "extra_special_tokens": _NAMED,
            **_NAMED,
            "model_max_length": 2048,
            "pad_token": "<pad>",
            "processor_class": "Gemma3nProcessor",
            "sp_model_kwargs": None,
            "spaces_between_special_tokens": False,
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
        template=TEMPLATE.replace("<start_of_image>", SOFT_TOKEN),
        model=sentencepiece_model(pieces, unk_id=3, add_dummy_prefix=False),
    )


def _tokenizer(pieces: list[Piece]) -> Config:
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    # In the vocabulary too: ids between them are nobody's.
    ids |= {text: number for number, text in TOWER_TOKENS.items()}
    special = {text: flag for text, _, flag in FIRST} | dict.fromkeys(_BEGINS, True)
    added = [added_token(ids[text], text, special=flag) for text, flag in special.items()]
    added += [added_token(number, text) for number, text in TOWER_TOKENS.items()]
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
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
