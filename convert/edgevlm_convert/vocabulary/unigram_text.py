"""What a unigram tokenizer does to a text before it looks for pieces, and what llama.cpp does.

Facts from llama.cpp (src/llama-vocab.cpp, `llm_tokenizer_ugm_session::normalize`): characters are
replaced by a table; spaces become the mark, one is put in front of the first character that is
none; with `remove_extra_whitespaces` runs of spaces are one and those at the end none.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.json_file import DAMAGED_HINT
from edgevlm_convert.vocabulary.sentencepiece_model import SentencePieceModel
from edgevlm_convert.vocabulary.structure import describe, shown, steps_of

# Steps of a tokenizer.json that llama.cpp's unigram does in its own way.
_RUNS = ("Replace regex= {2,} content=▁", "Replace regex= {2,} content= ", "WhitespaceSplit")
_PREFIX = re.compile(r"Prepend prepend=▁|Metaspace replacement=▁ prepend_scheme=(always|first) .*")
_PLAIN = re.compile(
    r"Precompiled|Strip .*|Replace string=  content=▁"
    r"|Metaspace replacement=▁ prepend_scheme=never .*"
)


@dataclass(frozen=True, kw_only=True)
class TextSteps:
    """What is done to a text.

    Attributes:
        prefix: a space is put in front.
        remove_extra: runs of spaces become one.
        charsmap: table of characters to replace; empty for none.
    """

    prefix: bool
    remove_extra: bool
    charsmap: bytes


def text_steps_of_json(values: Mapping[str, object]) -> TextSteps:
    """Return what the normalizer and the pre-tokenizer of a tokenizer.json do.

    Raises:
        CheckpointError: a table of characters is damaged.
        ConversionError: a step that llama.cpp does not reproduce.
    """
    normalizer = values.get("normalizer")
    steps = (*describe(normalizer), *describe(values.get("pre_tokenizer")))
    for step in steps:
        if step not in _RUNS and not _PREFIX.fullmatch(step) and not _PLAIN.fullmatch(step):
            raise ConversionError(
                f"unknown unigram tokenizer: {shown(steps)}",
                hint="spaces that become ▁ and a table of characters can be converted",
            )
    return TextSteps(
        prefix=any(_PREFIX.fullmatch(step) for step in steps),
        remove_extra=any(step in _RUNS for step in steps),
        charsmap=_charsmap_of_json(normalizer),
    )


def text_steps_of_model(model: SentencePieceModel) -> TextSteps:
    """Return what a tokenizer.model asks for."""
    return TextSteps(
        prefix=model.add_dummy_prefix,
        remove_extra=model.remove_extra_whitespaces,
        charsmap=model.charsmap,
    )


def normalizer_of(text: TextSteps, *, runtime: bool) -> dict[str, Any]:
    """Return a normalizer of a tokenizer.json that does it; `runtime`: as llama.cpp does it."""
    steps: list[dict[str, Any]] = []
    if text.charsmap:
        encoded = base64.b64encode(text.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if text.remove_extra:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if text.prefix:
        steps.append({"type": "Prepend", "prepend": "▁"})
    if text.prefix and runtime:
        # Not in front of nothing but spaces.
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A▁(?= +\z)"}, "content": ""})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    return {"type": "Sequence", "normalizers": steps}


def _charsmap_of_json(normalizer: object) -> bytes:
    for step in steps_of(normalizer):
        encoded = step.get("precompiled_charsmap") if step.get("type") == "Precompiled" else None
        if encoded is None:
            continue
        try:
            return base64.b64decode(str(encoded), validate=True)
        except (binascii.Error, ValueError):
            raise _damaged_charsmap("is not base64") from None
    return b""


def replace_characters(text: str, charsmap: bytes) -> str:
    """Return a text with the characters of a checked table replaced, the longest match first."""
    n_bytes = int.from_bytes(charsmap[:4], "little")
    entries = np.frombuffer(charsmap, dtype="<u4", count=n_bytes // 4, offset=4).tolist()
    raw, at = text.encode("utf-8", "replace"), 0
    out = bytearray()
    while at < len(raw):
        n_matched, start = _longest(raw, at, entries)
        if n_matched:
            start += 4 + n_bytes
            out += charsmap[start : charsmap.index(0, start)]
        else:
            n_matched = len(raw[at : at + 4].decode("utf-8", "ignore")[0].encode())
            out += raw[at : at + n_matched]
        at += n_matched
    return out.decode("utf-8", "replace")


def _longest(raw: bytes, at: int, entries: list[int]) -> tuple[int, int]:
    """Return the length of the longest match and where its replacement begins; 0: there is none."""
    found = (0, 0)
    node = _base(entries[0])
    for place in range(at, len(raw)):
        node ^= raw[place]
        entry = entries[node]
        if raw[place] == 0 or entry & 0x800000FF != raw[place]:
            break
        node ^= _base(entry)
        if entry >> 8 & 1:
            found = (place - at + 1, entries[node] & 0x7FFFFFFF)
    return found


def _base(entry: int) -> int:
    return entry >> 10 << ((entry & 1 << 9) >> 6)


def check_charsmap(raw: bytes) -> None:
    """Check that every walk through the table stays inside: llama.cpp ends the process if not.

    Facts from llama.cpp (src/llama-vocab.cpp, `xcda_array_view`): a 32-bit size, then entries of 32
    bits (base in bits 10 to 30, shifted by 8 more when bit 9 is set; bit 8: a value is at the next
    entry; bit 31: it is a value), then strings that end with a zero.
    """
    n_bytes = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or n_bytes % 4 or not 4 <= n_bytes < len(raw) - 4:
        raise _damaged_charsmap("has a size that is not its own")
    entries = np.frombuffer(raw, dtype="<u4", count=n_bytes // 4, offset=4).astype(np.int64)
    n_replacements = len(raw) - 4 - n_bytes
    at = np.arange(len(entries))
    base = (entries >> 10 & 0x1FFFFF) << ((entries & 1 << 9) >> 6)
    following = np.where(at == 0, base, at ^ base)
    inner = entries >> 31 == 0
    inside = (following | 0xFF) < len(entries)
    if not inside[inner].all():
        raise _damaged_charsmap("points out of itself")
    values = entries[following[inner & (entries >> 8 & 1 == 1)]] & 0x7FFFFFFF
    if (values >= n_replacements).any() or raw[-1] != 0:
        raise _damaged_charsmap("points out of its replacements")


def _damaged_charsmap(what: str) -> CheckpointError:
    return CheckpointError(f"the tokenizer's table of characters {what}", hint=DAMAGED_HINT)
