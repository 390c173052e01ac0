"""Special tokens: which ids are BOS, EOS ..., and which of them a tokenizer adds by itself.

The keys and their order are those of gguf-py's `SpecialVocab` (vocab.py): ids by name in
tokenizer_config.json, then by number in config.json; flags from the post-processor of
tokenizer.json, then from tokenizer_config.json. Where llama.cpp's own default for a kind of
vocabulary says otherwise than the tokenizer, the flag is written although that converter does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, quoted
from edgevlm_convert.metadata import Value, array, boolean, u32
from edgevlm_convert.vocabulary.added import SPECIAL_KINDS, AddedToken, by_content, token_text
from edgevlm_convert.vocabulary.rows import CONTROL

# "seperator" is the format's own spelling; llama.cpp has no key for cls.
_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
}
# EOS where no key names it; of other models llama.cpp takes none.
_DEFAULT_EOS = {"gpt2": 11, "llama": 2, "t5": 1}
_BORROWED = {"bos": "cls", "eos": "sep"}


@dataclass(frozen=True, kw_only=True)
class Specials:
    """Names of the special tokens, and which are added.

    Attributes:
        names: token by kind ("bos" ...).
        flags: whether a kind is added to a text, in the order in which the keys are written.
    """

    names: Mapping[str, str]
    flags: Mapping[str, bool]


@dataclass(kw_only=True)
class _Reading:
    """What has been read of names and flags so far."""

    names: dict[str, str]
    flags: dict[str, bool] = field(default_factory=dict[str, bool])


def read_specials(
    settings: Section | None, post_processor: object, *, adds_by_default: Sequence[str]
) -> Specials:
    """Read names and flags.

    Args:
        settings: tokenizer_config.json, or None.
        post_processor: of tokenizer.json, or None.
        adds_by_default: kinds that llama.cpp adds to such a vocabulary when a file does not say.

    Raises:
        ConversionError: a post-processor that adds more than one token in front or at the end.
    """
    names = {
        kind: token_text(settings.raw(f"{kind}_token")) if settings else ""
        for kind in SPECIAL_KINDS
    }
    for kind, other in _BORROWED.items():
        names[kind] = names[kind] or names[other]
    reading = _Reading(names=names)
    for step in _steps(post_processor):
        if step.get("type") == "ByteLevel":
            reading.flags.setdefault("bos", False)
            reading.flags.setdefault("eos", False)
        elif step.get("type") == "TemplateProcessing":
            _read_template(step, reading)
        else:
            raise _unknown(f"unknown post-processor {quoted(str(step.get('type')))}")
    told = dict(reading.flags)
    for kind in ("bos", "eos", "sep"):
        if settings and settings.has(f"add_{kind}_token"):
            flag = settings.boolean(f"add_{kind}_token", default=False)
            reading.flags.setdefault(kind, flag)
    for kind in adds_by_default:
        # Where no file says a word nothing is added, whatever llama.cpp would do.
        reading.flags.setdefault(kind, False)
    _check_added(reading, told)
    return Specials(names=reading.names, flags=reading.flags)


def _steps(post_processor: object) -> list[dict[str, object]]:
    if post_processor is None:
        return []
    node = _fields(post_processor)
    steps = node.get("processors", [node])
    return [_fields(step) for step in cast(list[object], steps)] if isinstance(steps, list) else []


def _read_template(step: Mapping[str, object], reading: _Reading) -> None:
    """Read a template: at most one special token before the text and one after it.

    Raises:
        CheckpointError: a token that the step itself does not define: `tokenizers` would panic.
        ConversionError: more tokens, or another one than BOS.
    """
    single, pair = _items(step.get("single")), _items(step.get("pair"))
    names = [name for name, _ in single]
    if names.count("") != 1 or names.index("") > 1 or len(names) - names.index("") > 2:
        raise _unknown("a post-processor that adds several tokens")
    first, last = (names[0], names[-1]) if len(names) > 1 else ("", "")
    if first:
        reading.names["bos"] = reading.names["bos"] or first
        reading.flags["bos"] = True
        if reading.names["bos"] != first:
            raise _unknown(
                f"a post-processor that adds {quoted(first)} in front, while BOS is "
                f"{quoted(reading.names['bos'])},"
            )
    if last:
        if reading.names["eos"] not in ("", last):
            reading.names["eot"] = reading.names["eos"]
        reading.names["eos"] = last
        reading.flags["eos"] = True
    defined = _fields(step.get("special_tokens"))
    for name, _ in (*single, *pair):
        if name and name not in defined:
            raise CheckpointError(
                f"tokenizer.json: the post-processor adds {quoted(name)} and does not define it",
                hint=DAMAGED_HINT,
            )
    _read_pair(pair, first, last, reading)


def _read_pair(pair: Sequence[tuple[str, str]], first: str, last: str, reading: _Reading) -> None:
    """Set the flag of SEP where a template has tokens between two texts, as SpecialVocab does."""
    starts = 1 if first and pair and pair[0][0] == first else 0
    stops = len(pair) - 1 if last and pair and pair[-1][0] == last else len(pair)
    inner = pair[starts:stops]
    if len(inner) < 3 or inner[0][1] != "A" or inner[-1][1] != "B":
        return
    middle = [name for name, _ in inner[1:-1]]
    separators = {reading.names["sep"], reading.names["eos"]} - {""}
    adds = (middle[0] in separators and not last) or (len(middle) == 2 and middle[1] in separators)
    reading.flags["sep"] = adds
    if adds and not reading.names["sep"]:
        reading.names["sep"] = reading.names["eos"]


def _items(value: object) -> list[tuple[str, str]]:
    """Return special token and sequence of every item of a template; one of them is empty."""
    items: list[tuple[str, str]] = []
    for item in cast(list[object], value) if isinstance(value, list) else []:
        token = _fields(_fields(item).get("SpecialToken")).get("id")
        sequence = _fields(_fields(item).get("Sequence")).get("id")
        items.append((token if isinstance(token, str) else "", str(sequence or "")))
    return items


def _check_added(reading: _Reading, told: Mapping[str, bool]) -> None:
    """Check that what is added has a name: llama.cpp would add the token of a default id."""
    for kind in ("bos", "eos"):
        if reading.flags.get(kind) and not reading.names[kind]:
            raise ConversionError(
                f"the tokenizer adds {kind.upper()} to every text and names no such token",
                hint=f"name `{kind}_token` in tokenizer_config.json, or set `add_{kind}_token` "
                f"to false" + (" in tokenizer.json" if kind in told else ""),
            )


def special_keys(
    specials: Specials,
    config: Section,
    generation: Section | None,
    added: Mapping[int, AddedToken],
    *,
    n_rows: int,
) -> dict[str, Value]:
    """Return the keys of ids and flags.

    Raises:
        CheckpointError: an id that is none.
    """
    known = by_content(added)
    found = {kind: known[name] for kind, name in specials.names.items() if name in known}
    sections = _sections(config)
    for kind in SPECIAL_KINDS:
        for section in sections:
            number = section.raw(f"{kind}_token_id")
            if kind not in found and isinstance(number, int) and not isinstance(number, bool):
                found[kind] = section.integer(f"{kind}_token_id", low=0, high=n_rows - 1)
    if "eos" not in found and (ends := _ends(config, generation, n_rows)):
        found["eos"] = ends[0]
    ids = {_ID_KEYS[kind]: u32(number) for kind, number in found.items() if kind in _ID_KEYS}
    return ids | {
        f"tokenizer.ggml.add_{kind}_token": boolean(flag) for kind, flag in specials.flags.items()
    }


def end_keys(
    config: Section, generation: Section | None, special: Mapping[str, Value], *, n_rows: int
) -> dict[str, Value]:
    """Return what ends an answer, where that is more than EOS.

    libllama reads one EOS of a file and finds some others by their names; some models have more.

    Raises:
        CheckpointError: an id that is none.
    """
    ends = _ends(config, generation, n_rows)
    eos = special.get(_ID_KEYS["eos"])
    known = [] if eos is None else [eos.value]
    if not ends or ends == known:
        return {}
    return {"edgevlm.tokenizer.end_token_ids": array("UINT32", sorted(set(ends)))}


def _ends(config: Section, generation: Section | None, n_rows: int) -> list[int]:
    """Return the ids that end an answer: of generation_config.json, else a list in config.json.

    A single number in config.json is often no more than the default of its class.
    """
    found = generation.raw("eos_token_id") if generation else None
    file = "generation_config.json"
    if found is None:
        values = [section.raw("eos_token_id") for section in _sections(config)]
        found = next(filter(_is_list, values), None)
        file = "config.json"
    ends: list[int] = []
    for number in cast(list[object], found) if _is_list(found) else [found]:
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < n_rows:
            raise CheckpointError(
                f"{file}: `eos_token_id` {quoted(str(number)[:40])} is not one of {n_rows} tokens",
                hint=DAMAGED_HINT,
            )
        ends.append(number)
    return ends


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _sections(config: Section) -> list[Section]:
    return [config, *([config.section("text_config")] if config.has("text_config") else [])]


def check_end(
    model: str, tokens: Sequence[str], types: Sequence[int], special: Mapping[str, Value]
) -> None:
    """Check that EOS is known: where no key says so llama.cpp ends an answer at a default id.

    Facts from llama.cpp (src/llama-vocab.cpp, `llama_vocab::impl::load`).

    Raises:
        ConversionError: no file names EOS, and the token of that id does not look like one.
    """
    number = _DEFAULT_EOS.get(model, len(tokens))
    if _ID_KEYS["eos"] in special or number >= len(tokens):
        return
    if types[number] != CONTROL:
        raise ConversionError(
            "no file says which token ends a text (EOS), and llama.cpp would take"
            f" {quoted(tokens[number])}",
            hint="name `eos_token` in tokenizer_config.json",
        )


def _unknown(what: str) -> ConversionError:
    return ConversionError(
        f"{what} in tokenizer.json",
        hint="tokenizers that add BOS in front and EOS behind, or nothing, can be converted",
    )


def _fields(node: object) -> dict[str, object]:
    return cast(dict[str, object], node) if isinstance(node, dict) else {}
