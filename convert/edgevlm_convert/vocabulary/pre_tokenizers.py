"""Recognise a pre-tokenizer by its structure, never by the hash of what it does.

llama.cpp implements each pre-tokenizer in C++ under a name (src/llama-vocab.cpp); a file says
which. The structure in tokenizer.json (regular expressions, behaviours, byte-level flags) decides
whether that implementation is the right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm.errors import ConversionError
from edgevlm_convert.json_file import quoted
from edgevlm_convert.vocabulary.structure import describe, fields_of, shown


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One implementation of llama.cpp.

    Attributes:
        name: `tokenizer.ggml.pre`.
        ignore_merges: a piece that is a token is taken whole, without merging.
        adds_bos: BOS is put in front when a file does not say.
    """

    name: str
    ignore_merges: bool = False
    adds_bos: bool = False


_QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = "ByteLevel add_prefix_space=False use_regex=False"
_GPT2 = "ByteLevel add_prefix_space=False use_regex=True"


def _split(regex: str) -> str:
    return f"Split regex={regex} behavior=Isolated invert=False"


# The structures as `describe` writes them.
_KNOWN: tuple[tuple[PreTokenizer, tuple[str, ...]], ...] = (
    (PreTokenizer(name="qwen2"), (_split(_QWEN2_REGEX), _BYTES)),
    (PreTokenizer(name="qwen35"), (_split(_QWEN35_REGEX), _BYTES)),
    (
        PreTokenizer(name="llama-bpe", ignore_merges=True, adds_bos=True),
        (_split(_LLAMA3_REGEX), _BYTES),
    ),
    (PreTokenizer(name="smaug-bpe"), (_split(_LLAMA3_REGEX), _BYTES)),
    (PreTokenizer(name="smollm"), ("Digits individual_digits=True", _GPT2)),
    (PreTokenizer(name="gpt-2"), (_GPT2,)),
)
BY_NAME: Mapping[str, PreTokenizer] = {known.name: known for known, _ in _KNOWN}


def recognise_pre_tokenizer(node: object, *, ignore_merges: bool = False) -> PreTokenizer:
    """Return llama.cpp's implementation of a pre-tokenizer.

    Args:
        node: `pre_tokenizer` of tokenizer.json.
        ignore_merges: the model's option of this name.

    Raises:
        ConversionError: an unknown structure; the message shows it beside the nearest known one.
    """
    structure = describe(node)
    for known, its_structure in _KNOWN:
        if structure == its_structure and known.ignore_merges == ignore_merges:
            return known
    text = shown(structure)
    nearest, its_structure = max(
        _KNOWN,
        key=lambda entry: difflib.SequenceMatcher(None, shown(entry[1]), text).ratio(),
    )
    merging = " (`ignore_merges`)" if ignore_merges else ""
    raise ConversionError(
        f"unknown pre-tokenizer: {text}{merging}",
        hint=f"the nearest known one is {nearest.name}: {shown(its_structure)}",
    )


def recognise_normalizer(node: object) -> str:
    """Return "NFC", or "" for none.

    Raises:
        ConversionError: any other normalizer: llama.cpp applies none to a BPE vocabulary.
    """
    steps = describe(node)
    if steps in ((), ("NFC",)):
        return steps[0] if steps else ""
    raise ConversionError(
        f"unknown normalizer {quoted(str(fields_of(node).get('type')))} in tokenizer.json",
        hint="byte-level BPE vocabularies with NFC or no normalizer can be converted",
    )
