"""Mistral's tekken.json, put together as the tokenizer.json that transformers has of it.

A token's id is its rank behind those of the control tokens. The file has no merges: two pieces
merge when together they are a token, the lowest rank first. As merges: every way to make a token of
two others, in the order of the tokens. Facts: mistral_common tokens/tokenizers/tekken.py (ids, the
control tokens that files up to version 7 leave to it), transformers
integrations/mistral/tokenizer.py (the order of merges). That both ways give the same ids is tried
on the texts of a proof (`check_merges`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.config import MAX_VOCABULARY, Section
from edgevlm_convert.json_file import DAMAGED_HINT, quoted, read_json
from edgevlm_convert.vocabulary.byte_letters import BYTE_LETTERS

FILE = "tekken.json"
BOS, EOS = "<s>", "</s>"
_MAX_BYTES = 64_000_000
_MAX_TOKEN_BYTES = 4096
_IN_REFERENCE = (
    "<unk>", BOS, EOS, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
_OLD_VERSIONS = ("v1", "v2", "v3", "v7")
_HINT = "convert the same model in transformers' naming, with a tokenizer.json"


def tekken_as_tokenizer_json(folder: Path) -> bytes | None:
    """Return the tokenizer.json of a folder that has tekken.json alone; None: it has none.

    Raises:
        CheckpointError: the file is too large or malformed.
    """
    path = folder / FILE
    if not path.exists():
        return None
    status = path.stat()
    return _as_json(path, status.st_size, status.st_mtime_ns)


def tekken_settings(folder: Path) -> Section | None:
    """Return what a tokenizer_config.json would say; None where tekken.json is not all there is.

    A folder that comes without any chat template gets that of its version.

    Raises:
        CheckpointError: the file is too large or malformed.
    """
    path = folder / FILE
    if not path.exists() or (folder / "tokenizer.json").exists():
        return None
    names = _control_tokens(_read(path))
    values: dict[str, object] = {
        f"{kind}_token": name
        for kind, name in (("bos", BOS), ("eos", EOS), ("unk", "<unk>"), ("pad", "<pad>"))
        if name in names
    }
    if not any((folder / f"chat_template.{ending}").exists() for ending in ("jinja", "json")):
        values["chat_template"] = _template(_read(path))
    return Section(values, file=FILE)


def image_section(folder: Path) -> Section | None:
    """Return what tekken.json says of images, None where it says nothing.

    Raises:
        CheckpointError: the file is too large or malformed.
    """
    if not (folder / FILE).exists():
        return None
    document = _read(folder / FILE)
    key = "image" if document.has("image") else "multimodal"
    return document.section(key) if document.has(key) else None


def check_merges(folder: Path, pieces: Sequence[tuple[bytes, Sequence[int]]]) -> None:
    """Hold the ids that merges give against those that ranks give.

    Args:
        folder: with tekken.json.
        pieces: of texts, as its expression cuts them, and the ids of each by merges.

    Raises:
        ConversionError: a piece comes out differently.
    """
    document = _read(folder / FILE)
    ranks, n_control = _ranks(document), len(_control_tokens(document))
    for piece, found in pieces:
        expected = [rank + n_control for rank in _merged(piece, ranks)]
        if expected != list(found):
            raise ConversionError(
                f"{FILE}: {quoted(repr(piece))} is {expected[:12]} by ranks, {list(found)[:12]} by"
                " merges, and llama.cpp knows merges alone",
                hint=_HINT,
            )


def _merged(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Return the ranks of a piece, merged pair by pair, of equal pairs the first."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [piece[at : at + 1] for at in range(len(piece))]
    while True:
        pairs = [
            (ranks[left + right], at)
            for at, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not pairs:
            return [ranks[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@lru_cache(maxsize=1)
def _as_json(path: Path, n_bytes: int, changed_ns: int) -> bytes:
    """Return the document; kept, because a conversion asks for it several times."""
    del n_bytes, changed_ns
    document = _read(path)
    names, ranks = _control_tokens(document), _ranks(document)
    split = {
        "type": "Split",
        "pattern": {"Regex": document.section("config").text("pattern")},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocabulary = {name: number for number, name in enumerate(names)}
    for token, rank in ranks.items():
        letters = _letters(token)
        if letters in vocabulary:
            _fail(path.name, f"token {quoted(letters)} is there twice")
        vocabulary[letters] = len(names) + rank
    first = {"SpecialToken": {"id": BOS, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    values = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, name in enumerate(names)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**byte_level, "use_regex": False}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [names.index(BOS)], "tokens": [BOS]}},
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": _merges(ranks),
        },
    }
    return json.dumps(values).encode()


def _merges(ranks: Mapping[bytes, int]) -> list[list[str]]:
    merges: list[list[str]] = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        ways = [
            (ranks[token[:cut]], ranks[token[cut:]], cut)
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        merges += [[_letters(token[:cut]), _letters(token[cut:])] for _, _, cut in sorted(ways)]
    return merges


def _read(path: Path) -> Section:
    return Section(read_json(path, max_bytes=_MAX_BYTES), file=FILE)


def _control_tokens(document: Section) -> list[str]:
    """Return the control tokens in order, those that no file names among them."""
    config = document.section("config")
    entries = document.raw("special_tokens")
    if entries is None:
        if config.text("version", default="") not in _OLD_VERSIONS:
            document.fail("special_tokens", "a list of control tokens, in this version")
        names = list(_IN_REFERENCE)
    else:
        names = _names(document, entries)
    n_control = config.integer(
        "default_num_special_tokens", low=1, high=MAX_VOCABULARY, default=len(names)
    )
    if len(names) > n_control:
        config.fail("default_num_special_tokens", f"at least the {len(names)} that are named")
    names += [f"<SPECIAL_{number}>" for number in range(len(names), n_control)]
    if len(set(names)) != len(names) or BOS not in names:
        _fail(FILE, f"its control tokens are not different, or {quoted(BOS)} is not among them")
    return names


def _names(document: Section, entries: object) -> list[str]:
    found: dict[int, str] = {}
    for entry in cast(list[object], entries) if isinstance(entries, list) else []:
        fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
        section = Section(fields, file=FILE, path="special_tokens[].")
        rank = section.integer("rank", low=0, high=MAX_VOCABULARY)
        found[rank] = section.text("token_str")
    if not found or sorted(found) != list(range(len(cast(list[object], entries)))):
        document.fail("special_tokens", "control tokens of the ranks 0, 1, 2 ...")
    return [found[rank] for rank in range(len(found))]


def _ranks(document: Section) -> dict[bytes, int]:
    """Return the ranks of the tokens that the model has; a file may hold more."""
    config = document.section("config")
    entries = document.raw("vocab")
    found = cast(list[object], entries) if isinstance(entries, list) else []
    n_control = len(_control_tokens(document))
    n_all = config.integer(
        "default_vocab_size",
        low=n_control + 256,
        high=MAX_VOCABULARY,
        default=len(found) + n_control,
    )
    n_tokens = n_all - n_control
    if len(found) < n_tokens:
        document.fail("vocab", f"a list of at least {n_tokens} tokens")
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(found[:n_tokens]):
        fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
        token = _token(fields.get("token_bytes"))
        if fields.get("rank") != rank or not 0 < len(token) <= _MAX_TOKEN_BYTES or token in ranks:
            _fail(FILE, f"token {rank} has another rank, no bytes, or is there twice")
        ranks[token] = rank
    if any(bytes([byte]) not in ranks for byte in range(256)):
        _fail(FILE, "a byte has no token")
    return ranks


def _token(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return b""


def _letters(token: bytes) -> str:
    return "".join(BYTE_LETTERS[byte] for byte in token)


def _fail(file: str, what: str) -> NoReturn:
    raise CheckpointError(f"{file}: {what}", hint=DAMAGED_HINT)


def _template(document: Section) -> str:
    """Return a chat template as mistral_common writes prompts of this version.

    Up to version 3 a system prompt stands before the last question.
    """
    version = document.section("config").text("version", default="")
    return _TURNS if version in ("v1", "v2", "v3") else _SYSTEM_TURNS


_CONTENT = (
    "{% macro shown(content) %}{% if content is string %}{{ content }}"
    # Of a text and an image the image comes first, as mistral_common has it.
    "{% elif content | length == 2 and content[0]['type'] == 'text'"
    " and content[1]['type'] == 'image' %}[IMG]{{ content[0]['text'] }}{% else %}"
    "{% for part in content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}[IMG]{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{{ bos_token }}"
)
_ANSWER = "{{ shown(message['content']) }}{{ eos_token }}"
_SYSTEM_TURNS = (
    _CONTENT + "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "[SYSTEM_PROMPT]{{ shown(message['content']) }}[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]{{ shown(message['content']) }}[/INST]"
    "{% else %}" + _ANSWER + "{% endif %}{% endfor %}"
)
_TURNS = (
    _CONTENT + "{% set ns = namespace(system='', last=-1) %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = shown(message['content']) %}"
    "{% elif message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% if ns.system and loop.index0 == ns.last %}{{ ns.system }}{{ '\\n\\n' }}{% endif %}"
    "{{ shown(message['content']) }}[/INST]"
    "{% elif message['role'] == 'assistant' %}" + _ANSWER + "{% endif %}{% endfor %}"
)
