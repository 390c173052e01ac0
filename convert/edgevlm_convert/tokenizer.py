"""Tokenizer files of a checkpoint -> the vocabulary keys of a GGUF file.

Reads tokenizer.json (byte-level BPE), tokenizer_config.json and the chat template; needs neither
`tokenizers` nor `transformers`. The keys, their order and the token types are those that
llama.cpp's converter writes (conversion/base.py `get_vocab_base`, gguf-py vocab.py `SpecialVocab`).
The pre-tokenizer is recognised by its structure, where llama.cpp hashes the ids of a test string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.chat_template import chat_templates
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, quoted, read_json
from edgevlm_convert.metadata import Value, array, boolean, string, u32
from edgevlm_convert.pretokenizer import check_model, recognise_normalizer, recognise_pre_tokenizer

# Token types of GGUF (llama.h, `llama_token_type`).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_MAX_TOKENIZER_BYTES = 64_000_000
# Embeddings are padded for speed (Qwen3-VL: 267 rows); more than this is another model's tokenizer.
_MAX_PADDING = 1024
_SPECIAL_TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# "seperator" is the format's own spelling; llama.cpp has no key for cls.
_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# Control tokens that some tokenizers do not mark as special (conversion/base.py).
_LOOKS_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))  # noqa: RUF001 (DeepSeek's bars)


@dataclass(frozen=True, kw_only=True)
class _AddedToken:
    id: int
    content: str
    special: bool


def vocabulary(
    checkpoint: Checkpoint, *, n_rows: int, runtime_tokens: Sequence[str]
) -> dict[str, Value]:
    """Return the `tokenizer.*` keys, padded to the embedding's rows.

    A normalizer, which llama.cpp does not apply, is kept as `edgevlm.tokenizer.normalizer`; what
    ends an answer besides EOS as `edgevlm.tokenizer.end_token_ids`.

    Args:
        checkpoint: the folder and its config.
        n_rows: rows of the token embedding.
        runtime_tokens: tokens that llama.cpp looks up for this projector; without one libmtmd
            aborts the process at the first image.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConversionError: a tokenizer that llama.cpp cannot reproduce, or that is not this model's.
    """
    path = checkpoint.folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"`{checkpoint.folder}` has no tokenizer.json",
            hint="save a fast tokenizer beside the weights (`save_pretrained` of transformers)",
        )
    tokenizer = Section(read_json(path, max_bytes=_MAX_TOKENIZER_BYTES), file="tokenizer.json")
    settings = checkpoint.optional_json("tokenizer_config.json")
    model = tokenizer.section("model")
    check_model(model, tokenizer.raw("decoder"), tokenizer.raw("post_processor"))
    pre = recognise_pre_tokenizer(tokenizer.raw("pre_tokenizer"))
    normalizer = recognise_normalizer(tokenizer.raw("normalizer"))
    ids = _token_ids(model, n_rows)
    added = _added_tokens(tokenizer, settings, ids, n_rows)
    tokens, types = _token_list(ids, added, n_rows)
    _check_runtime_tokens(runtime_tokens, ids, added)
    values = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        "tokenizer.ggml.tokens": array("STRING", tokens),
        "tokenizer.ggml.token_type": array("INT32", types),
        "tokenizer.ggml.merges": array("STRING", _merges(model, ids)),
    }
    special = _special_ids(settings, checkpoint.config, added, n_rows)
    values |= special
    values |= _add_flags(settings, tokenizer.raw("post_processor"))
    values |= chat_templates(checkpoint.folder, settings)
    values |= _end_ids(checkpoint, special, n_rows)
    if normalizer:
        values["edgevlm.tokenizer.normalizer"] = string(normalizer)
    return values


def _token_ids(model: Section, n_rows: int) -> dict[str, int]:
    """Return the BPE vocabulary, checked: ids are unique and below `n_rows`."""
    vocab = model.raw("vocab")
    if not isinstance(vocab, dict) or not vocab:
        model.fail("vocab", "an object of tokens and ids")
    for token, number in cast(dict[str, object], vocab).items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise CheckpointError(
                f"tokenizer.json: token {quoted(token)} has the id {quoted(str(number))}",
                hint=DAMAGED_HINT,
            )
        if number >= n_rows:
            raise _too_large(token, number, n_rows)
    ids = cast(dict[str, int], vocab)
    if len(set(ids.values())) != len(ids):
        raise CheckpointError("tokenizer.json: two tokens have the same id", hint=DAMAGED_HINT)
    return ids


def _too_large(token: str, number: int, n_rows: int) -> ConversionError:
    return ConversionError(
        f"token {quoted(token)} has the id {number}, the embedding has only {n_rows} rows",
        hint="tokenizer and weights are of different models, or the embedding was not resized",
    )


def _added_tokens(
    tokenizer: Section, settings: Section | None, ids: Mapping[str, int], n_rows: int
) -> dict[int, _AddedToken]:
    """Return the added tokens by id, after checking them against the vocabulary."""
    entries = tokenizer.raw("added_tokens")
    named = _named_special(settings)
    taken = {number: token for token, number in ids.items()}
    added: dict[int, _AddedToken] = {}
    for entry in cast(list[object], entries) if isinstance(entries, list) else []:
        fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
        section = Section(fields, file="tokenizer.json", path="added_tokens[].")
        number = section.integer("id", low=0, high=1 << 31)
        content = section.text("content")
        if number >= n_rows:
            raise _too_large(content, number, n_rows)
        if taken.get(number, content) != content or ids.get(content, number) != number:
            raise CheckpointError(
                f"tokenizer.json: added token {quoted(content)} contradicts the vocabulary",
                hint=DAMAGED_HINT,
            )
        special = section.boolean("special", default=False) or content in named
        added[number] = _AddedToken(id=number, content=content, special=special)
    _check_declared(settings, added)
    return added


def _named_special(settings: Section | None) -> set[str]:
    """Return the tokens that tokenizer_config.json names as special, whatever their flag says."""
    if settings is None:
        return set()
    named = {_token_text(settings.raw(f"{kind}_token")) for kind in _SPECIAL_TYPES}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        entries = settings.raw(key)
        if isinstance(entries, dict):
            entries = list(cast(dict[str, object], entries).values())
        if isinstance(entries, list):
            named |= {_token_text(entry) for entry in cast(list[object], entries)}
    return named - {""}


def _check_declared(settings: Section | None, added: Mapping[int, _AddedToken]) -> None:
    """Check that tokenizer_config.json adds no token that tokenizer.json lacks."""
    declared = settings.raw("added_tokens_decoder") if settings else None
    if not isinstance(declared, dict):
        return
    for number, entry in cast(dict[str, object], declared).items():
        content = _token_text(entry)
        known = added.get(int(number)) if number.isdecimal() and len(number) < 10 else None
        if known is None or known.content != content:
            raise ConversionError(
                f"tokenizer_config.json adds token {quoted(content)} with the id {quoted(number)}, "
                "tokenizer.json does not",
                hint="save the tokenizer again, so that both files agree",
            )


def _token_list(
    ids: Mapping[str, int], added: Mapping[int, _AddedToken], n_rows: int
) -> tuple[list[str], list[int]]:
    """Return texts and types of all rows; a row without a token becomes `[PAD{row}]`."""
    tokens = [f"[PAD{row}]" for row in range(n_rows)]
    types = [UNUSED] * n_rows
    for token, number in ids.items():
        tokens[number], types[number] = token, NORMAL
    for number, token in added.items():
        control = token.special or _looks_special(token.content)
        types[number] = CONTROL if control else USER_DEFINED
        # SentencePiece's space mark is a plain space in text that users type.
        tokens[number] = token.content if control else token.content.replace("▁", " ")
    n_padding = types.count(UNUSED)
    if n_padding > max(_MAX_PADDING, n_rows // 8):
        raise ConversionError(
            f"the vocabulary has {n_rows - n_padding} tokens, the embedding {n_rows} rows: "
            f"{n_padding} rows without a token",
            hint="the tokenizer is of another model; download the checkpoint again",
        )
    return tokens, types


def _looks_special(token: str) -> bool:
    return token in _LOOKS_SPECIAL or any(
        token.startswith(begin) and token.endswith(end) for begin, end in _SPECIAL_BRACKETS
    )


def _check_runtime_tokens(
    runtime_tokens: Sequence[str], ids: Mapping[str, int], added: Mapping[int, _AddedToken]
) -> None:
    known = {token.content for token in added.values()}
    for token in runtime_tokens:
        if token not in known and token not in ids:
            raise ConversionError(
                f"the tokenizer has no token {quoted(token)}, which llama.cpp needs for images",
                hint="the tokenizer is of a text-only model; use the one of the VLM",
            )


def _merges(model: Section, ids: Mapping[str, int]) -> list[str]:
    """Return the merges as `left right`; both parts and their union must be tokens."""
    entries = model.raw("merges")
    if not isinstance(entries, list):
        model.fail("merges", "a list of merges")
    merges: list[str] = []
    for entry in cast(list[object], entries):
        left, right = _pair(entry)
        if left not in ids or right not in ids or left + right not in ids:
            raise CheckpointError(
                f"tokenizer.json: merge {quoted(f'{left} {right}')} is of no known tokens",
                hint=DAMAGED_HINT,
            )
        # A space separates the parts; inside one it is written as its byte-level letter.
        merges.append(f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}")
    return merges


def _pair(value: object) -> tuple[str, str]:
    # Until transformers 4.44 a merge was one string.
    parts = value.split(" ") if isinstance(value, str) else value
    items = cast(list[object], parts) if isinstance(parts, list) else list[object]()
    if len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], str):
        return items[0], items[1]
    raise CheckpointError(
        f"tokenizer.json: {quoted(str(value)[:80])} is not a merge of two tokens", hint=DAMAGED_HINT
    )


def _special_ids(
    settings: Section | None, config: Section, added: Mapping[int, _AddedToken], n_rows: int
) -> dict[str, Value]:
    """Return the ids of bos, eos ...: by name in tokenizer_config.json, else from config.json."""
    by_content = {token.content: token.id for token in added.values()}
    found: dict[str, int] = {}
    fallback = {"bos": "cls", "eos": "sep"}
    for kind in _SPECIAL_TYPES if settings else ():
        named = _token_text(settings.raw(f"{kind}_token")) if settings else ""
        if not named and kind in fallback and settings:
            named = _token_text(settings.raw(f"{fallback[kind]}_token"))
        if named in by_content:
            found[kind] = by_content[named]
    sections = [config, *([config.section("text_config")] if config.has("text_config") else [])]
    for kind in _SPECIAL_TYPES:
        for section in sections:
            number = section.raw(f"{kind}_token_id")
            # A list (several end tokens) is left to the chat template's end of turn.
            if kind not in found and isinstance(number, int) and not isinstance(number, bool):
                found[kind] = section.integer(f"{kind}_token_id", low=0, high=n_rows - 1)
    return {_ID_KEYS[kind]: u32(number) for kind, number in found.items() if kind in _ID_KEYS}


def _token_text(entry: object) -> str:
    """Return a token given as text or as an object with `content`; empty when it is neither."""
    if isinstance(entry, dict):
        entry = cast(dict[str, object], entry).get("content")
    return entry if isinstance(entry, str) else ""


def _add_flags(settings: Section | None, post_processor: object) -> dict[str, Value]:
    """Return whether bos, eos and sep are added; byte-level post-processing adds none."""
    flags: dict[str, bool] = {}
    node = cast(dict[str, object], post_processor) if isinstance(post_processor, dict) else {}
    steps = node.get("processors", [node])
    for step in cast(list[object], steps) if isinstance(steps, list) else []:
        if isinstance(step, dict) and cast(dict[str, object], step).get("type") == "ByteLevel":
            flags |= {"bos": False, "eos": False}
    for kind in ("bos", "eos", "sep"):
        if settings and settings.has(f"add_{kind}_token"):
            flags.setdefault(kind, settings.boolean(f"add_{kind}_token", default=False))
    return {f"tokenizer.ggml.add_{kind}_token": boolean(flag) for kind, flag in flags.items()}


def _end_ids(checkpoint: Checkpoint, special: Mapping[str, Value], n_rows: int) -> dict[str, Value]:
    """Return the ids of generation_config.json that end an answer, where there are more than EOS.

    libllama reads one EOS of a file and finds some others by their names; some models have more.
    """
    generation = checkpoint.optional_json("generation_config.json")
    if generation is None:
        return {}
    found = generation.raw("eos_token_id")
    ids = cast(list[object], found) if isinstance(found, list) else [found]
    ends: list[int] = []
    for number in ids:
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < n_rows:
            raise CheckpointError(
                f"generation_config.json: `eos_token_id` {quoted(str(number)[:40])} is not one of"
                f" {n_rows} tokens",
                hint=DAMAGED_HINT,
            )
        ends.append(number)
    eos = special.get(_ID_KEYS["eos"])
    known = [] if eos is None else [eos.value]
    if not ends or ends == known:
        return {}
    return {"edgevlm.tokenizer.end_token_ids": array("UINT32", sorted(set(ends)))}
