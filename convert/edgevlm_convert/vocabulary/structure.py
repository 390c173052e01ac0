"""The steps of a tokenizer.json, written so that they can be compared and shown.

A step becomes one line: its type and the settings that change what it does, those left out with
the defaults of `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

# Which keys of a step change its output, with their defaults in `tokenizers`.
_MEANINGFUL: Mapping[str, Mapping[str, object]] = {
    "Split": {"pattern": None, "behavior": None, "invert": False},
    "ByteLevel": {"add_prefix_space": True, "use_regex": True},
    "Digits": {"individual_digits": False},
    "Punctuation": {"behavior": "Isolated"},
    "Metaspace": {"replacement": "▁", "prepend_scheme": None, "split": True},
    "Prepend": {"prepend": None},
    "Replace": {"pattern": None, "content": None},
    # A table of hundreds of kilobytes.
    "Precompiled": {},
}
_INNER = {"pretokenizers", "normalizers", "decoders", "processors"}
_MAX_STEPS = 16
_MAX_SHOWN = 1200


def describe(node: object) -> tuple[str, ...]:
    """Return one line per step of a normalizer, a pre-tokenizer or a decoder."""
    return tuple(_describe_step(step) for step in steps_of(node))


def steps_of(node: object) -> list[dict[str, object]]:
    """Return the steps of a sequence, or the one step that a node is; at most 17."""
    if node is None:
        return []
    fields = fields_of(node)
    if fields.get("type") != "Sequence":
        return [fields]
    steps = next((fields[key] for key in _INNER if key in fields), ())
    inner = cast(list[object], steps) if isinstance(steps, list) else []
    return [fields_of(step) for step in inner[: _MAX_STEPS + 1]]


def shown(structure: tuple[str, ...]) -> str:
    """Return a structure as one line of bounded length."""
    return (" -> ".join(structure) or "none")[:_MAX_SHOWN]


def fields_of(node: object) -> dict[str, object]:
    """Return an object of the file, an empty one in place of anything else."""
    return cast(dict[str, object], node) if isinstance(node, dict) else {}


def _describe_step(fields: dict[str, object]) -> str:
    kind = str(fields.get("type"))
    defaults = _MEANINGFUL.get(kind, {key: None for key in fields if key != "type"})
    words = [kind]
    for key, default in defaults.items():
        value = fields.get(key, default)
        if key == "pattern":
            pattern = fields_of(value)
            style = "regex" if "Regex" in pattern else "string"
            words.append(f"{style}={pattern.get('Regex', pattern.get('String'))}")
        else:
            words.append(f"{key}={value}")
    return " ".join(words)
