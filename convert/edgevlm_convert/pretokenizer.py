"""Recognise a pre-tokenizer by its structure, never by the hash of what it does.

llama.cpp implements each pre-tokenizer in C++ under a name (src/llama-vocab.cpp); a file says
which. The structure in tokenizer.json (regular expressions, behaviours, byte-level flags) decides
whether that implementation is the right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import cast

from edgevlm.errors import ConversionError
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import quoted

# The structures as `_describe` writes them, by llama.cpp's name.
_QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "qwen2": (
        f"Split regex={_QWEN2_REGEX} behavior=Isolated invert=False",
        "ByteLevel add_prefix_space=False use_regex=False",
    ),
}
# Which keys of a step change its output, with their defaults in `tokenizers`.
_MEANINGFUL: Mapping[str, Mapping[str, object]] = {
    "Split": {"pattern": None, "behavior": None, "invert": False},
    "ByteLevel": {"add_prefix_space": True, "use_regex": True},
    "Digits": {"individual_digits": False},
}
_MAX_STEPS = 16


def recognise_pre_tokenizer(node: object) -> str:
    """Return llama.cpp's name of a pre-tokenizer.

    Raises:
        ConversionError: an unknown structure; the message shows it beside the nearest known one.
    """
    structure = _describe(node)
    for name, known in PRE_TOKENIZERS.items():
        if structure == known:
            return name
    shown = " -> ".join(structure) or "none"
    nearest = max(
        PRE_TOKENIZERS,
        key=lambda name: difflib.SequenceMatcher(
            None, " -> ".join(PRE_TOKENIZERS[name])[:2000], shown[:2000]
        ).ratio(),
    )
    raise ConversionError(
        f"unknown pre-tokenizer: {shown[:2000]}",
        hint=f"the nearest known one is {nearest}: {' -> '.join(PRE_TOKENIZERS[nearest])}",
    )


def recognise_normalizer(node: object) -> str:
    """Return "NFC", or "" for none.

    Raises:
        ConversionError: any other normalizer: llama.cpp applies none to a BPE vocabulary.
    """
    if node is None:
        return ""
    fields = _fields(node)
    if fields.get("type") == "NFC":
        return "NFC"
    if fields.get("type") == "Sequence" and not fields.get("normalizers"):
        return ""
    raise ConversionError(
        f"unknown normalizer {quoted(str(fields.get('type')))} in tokenizer.json",
        hint="byte-level BPE vocabularies with NFC or no normalizer can be converted",
    )


def check_model(model: Section, decoder: object, post_processor: object) -> None:
    """Check that the tokenizer is a plain byte-level BPE that adds no token by itself.

    Raises:
        ConversionError: another model, decoder, or option that llama.cpp does not reproduce.
    """
    kind = model.raw("type")
    if kind != "BPE" or _fields(decoder).get("type") != "ByteLevel":
        raise ConversionError(
            f"the tokenizer is {quoted(str(kind))} with decoder "
            f"{quoted(str(_fields(decoder).get('type')))}, not byte-level BPE",
            hint="only byte-level BPE vocabularies can be converted so far",
        )
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.raw(key):
            raise _unknown_option(key, model.raw(key))
    for key in ("fuse_unk", "byte_fallback", "ignore_merges"):
        if model.raw(key):
            raise _unknown_option(key, model.raw(key))
    _check_post_processor(post_processor)


def _unknown_option(key: str, value: object) -> ConversionError:
    return ConversionError(
        f"tokenizer.json: `model.{key}` is {quoted(str(value))}, "
        "which llama.cpp's byte-level BPE does not know",
        hint="only plain byte-level BPE vocabularies can be converted",
    )


def _check_post_processor(node: object) -> None:
    """Allow none, ByteLevel, and a template without special tokens."""
    if node is None:
        return
    fields = _fields(node)
    steps = fields.get("processors", [node])
    for step in cast(list[object], steps) if isinstance(steps, list) else [None]:
        inner = _fields(step)
        plain = inner.get("type") == "TemplateProcessing" and not inner.get("special_tokens")
        if inner.get("type") != "ByteLevel" and not plain:
            raise ConversionError(
                f"unknown post-processor {quoted(str(inner.get('type')))} in tokenizer.json",
                hint="tokenizers that add tokens by themselves cannot be converted so far",
            )


def _describe(node: object) -> tuple[str, ...]:
    """Return one line per step: its type and the settings that change its output."""
    if node is None:
        return ()
    fields = _fields(node)
    if fields.get("type") == "Sequence":
        inner = fields.get("pretokenizers")
        steps = cast(list[object], inner) if isinstance(inner, list) else []
        return tuple(line for step in steps[:_MAX_STEPS] for line in _describe_step(step))
    return _describe_step(node)


def _describe_step(node: object) -> tuple[str, ...]:
    fields = _fields(node)
    kind = str(fields.get("type"))
    defaults = _MEANINGFUL.get(kind, {key: None for key in fields if key != "type"})
    words = [kind]
    for key, default in defaults.items():
        value = fields.get(key, default)
        if key == "pattern":
            pattern = _fields(value)
            style = "regex" if "Regex" in pattern else "string"
            words.append(f"{style}={pattern.get('Regex', pattern.get('String'))}")
        else:
            words.append(f"{key}={value}")
    return (" ".join(words),)


def _fields(node: object) -> dict[str, object]:
    return cast(dict[str, object], node) if isinstance(node, dict) else {}
