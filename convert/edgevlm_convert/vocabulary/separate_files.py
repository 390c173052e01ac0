"""A tokenizer in vocab.json and merges.txt, put together as the tokenizer.json that it lacks.

OpenGVLab's InternVL 2.5 and 3 come so. What the files leave out is in the tokenizer's class: for
Qwen's see transformers tokenization_qwen2.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgevlm.errors import CheckpointError
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, check_regular_file, quoted, read_json
from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME

_VOCAB, _MERGES, _SETTINGS = "vocab.json", "merges.txt", "tokenizer_config.json"
_MAX_BYTES = 32_000_000
_MAX_SETTINGS_BYTES = 16_000_000
_QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def put_together(folder: Path) -> bytes | None:
    """Return the tokenizer.json of a folder that has Qwen's tokenizer in separate files.

    None where the files are not there, or are of another class.

    Raises:
        CheckpointError: a file is too large or malformed.
    """
    paths = [folder / name for name in (_VOCAB, _MERGES, _SETTINGS)]
    if not all(path.exists() for path in paths):
        return None
    settings = Section(read_json(paths[2], max_bytes=_MAX_SETTINGS_BYTES), file=_SETTINGS)
    if settings.text("tokenizer_class", default="") not in _QWEN:
        return None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    last = {**byte_level, "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": BY_NAME["qwen2"].expressions[0]},
        "behavior": "Isolated",
        "invert": False,
    }
    document = {
        "version": "1.0",
        "added_tokens": _added(settings),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, last]},
        "post_processor": last,
        "decoder": last,
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "vocab": read_json(paths[0], max_bytes=_MAX_BYTES),
            "merges": _merges(paths[1]),
        },
    }
    return json.dumps(document).encode()


def _added(settings: Section) -> list[dict[str, object]]:
    """Return the added tokens, which these files list in tokenizer_config.json."""
    key = "added_tokens_decoder"
    section = settings.section(key) if settings.has(key) else settings.empty(key)
    numbers, added = section.keys(), list[dict[str, object]]()
    for number in numbers:
        if not number.isdecimal() or not number.isascii() or len(number) > 9:
            section.fail(number, "an entry whose key is an id")
        token = section.section(number)
        flags = {
            flag: token.boolean(flag, default=False)
            for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        added.append({"id": int(number), "content": token.text("content"), **flags})
    return added


def _merges(path: Path) -> list[list[str]]:
    if check_regular_file(path) > _MAX_BYTES:
        raise CheckpointError(f"`{path}` is too large for merges", hint=DAMAGED_HINT)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"`{path}` is not UTF-8 text", hint=DAMAGED_HINT) from error
    merges: list[list[str]] = []
    for number, line in enumerate(lines):
        parts = line.rstrip("\r").split(" ")
        if parts == [""] or (number == 0 and line.startswith("#version")):
            continue
        if len(parts) != 2 or not all(parts):
            raise CheckpointError(
                f"`{path}`: line {number + 1}, {quoted(line)}, is not a merge of two tokens",
                hint=DAMAGED_HINT,
            )
        merges.append(parts)
    return merges
