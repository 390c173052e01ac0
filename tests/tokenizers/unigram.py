"""SentencePiece unigram, as Llama's tokenizer class has it and as T5's.

    write_tokenizer_unigram(folder)                    # bytes for what no piece covers
    write_tokenizer_unigram(folder, charsmap=TABLE)    # characters replaced, runs of spaces as one

`TABLE` is a table of characters in SentencePiece's format: a few of NFKC's, "a" with any of two
marks, and a space beyond ASCII.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tokenizers.parts import (
    CONTROL,
    UNKNOWN,
    Config,
    Piece,
    added_token,
    bos_template,
    bpe_pieces,
    byte_pieces,
    sentencepiece_model,
    write_files,
)

ADDED = ("<image>", "<pad>")
_FIRST = (
    Piece(text="<unk>", type=UNKNOWN),
    Piece(text="<s>", type=CONTROL),
    Piece(text="</s>", type=CONTROL),
)
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
RUNS = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def metaspace(scheme: str, *, split: bool = False) -> Config:
    """Return the pre-tokenizer that writes spaces as marks."""
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def sequence(*steps: Config) -> Config:
    """Return one normalizer of several."""
    return {"type": "Sequence", "normalizers": list(steps)}


def precompiled(charsmap: bytes) -> Config:
    """Return the normalizer that replaces characters."""
    encoded = base64.b64encode(charsmap).decode()
    return {"type": "Precompiled", "precompiled_charsmap": encoded}


def unigram_pieces(n_pieces: int) -> list[Piece]:
    """Return pieces whose scores make the best cut another one than greedy merges give."""
    plain = bpe_pieces(n_pieces - len(_FIRST) - 256)
    scores = [-(2.0 + rank * 7 % 11 + 1.5 / (rank + 1)) for rank in range(len(plain))]
    scored = [
        Piece(text=piece.text, score=struct.unpack("<f", struct.pack("<f", score))[0])
        for piece, score in zip(plain, scores, strict=True)
    ]
    return [*_FIRST, *byte_pieces(), *scored]


def write_tokenizer_unigram(
    folder: Path,
    *,
    n_tokens: int = 300,
    model: bool = True,
    declare: bool = True,
    byte_fallback: bool = True,
    charsmap: bytes = b"",
) -> None:
    """Write a unigram tokenizer; without `model` there is no tokenizer.model."""
    pieces = unigram_pieces(n_tokens - len(ADDED))
    proto = sentencepiece_model(
        pieces,
        unk_id=0,
        add_dummy_prefix=True,
        model_type=1,
        charsmap=charsmap,
        remove_extra_whitespaces=bool(charsmap),
    )
    names = [*(piece.text for piece in _FIRST), *ADDED]
    numbers = [0, 1, 2, len(pieces), len(pieces) + 1]
    tokenizer: Config = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(number, name) for number, name in zip(numbers, names, strict=True)
        ],
        "normalizer": sequence(precompiled(charsmap), RUNS)
        if charsmap
        else sequence(PREPEND, REPLACE),
        "pre_tokenizer": metaspace("always", split=True) if charsmap else None,
        "post_processor": bos_template("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[piece.text, piece.score] for piece in pieces],
            "byte_fallback": byte_fallback,
        },
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
        template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
        model=proto if model else None,
        declare=declare,
    )


def table_of_characters(replacements: Mapping[str, str]) -> bytes:
    """Return a precompiled_charsmap: a double array over bytes, then the replacements."""
    texts = b"\0".join(text.encode() for text in replacements.values()) + b"\0"
    values: dict[bytes, int] = {}
    start = 0
    for key, text in replacements.items():
        values[key.encode()] = start
        start += len(text.encode()) + 1
    units: dict[int, int] = {0: 0}
    _place(units, set(), (0, 0), sorted(values), 0, values)
    n_units = (max(units) // 256 + 1) * 256
    array = struct.pack(f"<{n_units}I", *(units.get(at, 0) for at in range(n_units)))
    return struct.pack("<I", len(array)) + array + texts


def _place(
    units: dict[int, int],
    bases: set[int],
    node: tuple[int, int],
    keys: Sequence[bytes],
    depth: int,
    values: Mapping[bytes, int],
) -> None:
    """Put a node (its place and byte), which all `keys` run through, and its children."""
    groups: dict[int, list[bytes]] = {}
    for key in keys:
        groups.setdefault(key[depth] if depth < len(key) else 0, []).append(key)
    base = next(
        base
        for base in range(1, 1 << 20)
        # A child is known by its byte alone: no two nodes may have one base.
        if base not in bases and not {base ^ byte for byte in groups} & {*units}
    )
    bases.add(base)
    at, label = node
    units[at] = (at ^ base) << 10 | (0 in groups) << 8 | label
    units.update(dict.fromkeys((base ^ byte for byte in groups), 0))
    for byte, inner in groups.items():
        if byte == 0:
            units[base] = 1 << 31 | values[inner[0]]
        else:
            _place(units, bases, (base ^ byte, byte), inner, depth + 1, values)


TABLE = table_of_characters(
    {"ﬁ": "fi", "a\u0301": "á", "a\u0308": "ä", "\u00a0": " ", "\u3000": " ", "\n": " ", "①": "1"}
)
