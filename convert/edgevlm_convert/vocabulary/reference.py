"""The checkpoint's own tokenizer, run by `tokenizers`, cut down to what some texts need.

`tokenizers` takes 600 MB for Gemma 3's vocabulary. BPE and unigram on a text only ever look at
tokens that are parts of it, so a vocabulary of those parts alone gives the same ids.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.config import MAX_VOCABULARY, Section
from edgevlm_convert.json_file import DAMAGED_HINT, quoted, read_json
from edgevlm_convert.vocabulary.added import AddedToken, added_tokens
from edgevlm_convert.vocabulary.byte_level import byte_letters
from edgevlm_convert.vocabulary.probes import Probe, probes
from edgevlm_convert.vocabulary.reference_tokenizer import (
    FLAGS,
    REPLACE_SPACES,
    ReferenceTokenizer,
    normalized,
)
from edgevlm_convert.vocabulary.rows import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from edgevlm_convert.vocabulary.sentencepiece_model import FILE as MODEL_FILE
from edgevlm_convert.vocabulary.sentencepiece_model import (
    UNIGRAM,
    SentencePieceModel,
    read_sentencepiece_model,
)
from edgevlm_convert.vocabulary.tekken import check_merges, tekken_settings
from edgevlm_convert.vocabulary.tokenizer_json import TokenizerJson, read_tokenizer_json
from edgevlm_convert.vocabulary.unigram import is_byte_piece, plain_bytes
from edgevlm_convert.vocabulary.unigram_text import (
    TextSteps,
    normalizer_of,
    text_steps_of_json,
    text_steps_of_model,
)

_FOUND_FIRST = (CONTROL, UNKNOWN, USER_DEFINED)
_N_LETTERS = 4
_MAX_SETTINGS_BYTES = 16_000_000


def open_reference(folder: Path) -> tuple[list[Probe], ReferenceTokenizer]:
    """Return the probe texts for a checkpoint's tokenizer, and that tokenizer.

    Raises:
        CheckpointError: a tokenizer file is missing or malformed.
    """
    tokenizer = read_tokenizer_json(folder)
    document = tokenizer.document if tokenizer else None
    settings, older = (
        read_json(folder / name, max_bytes=_MAX_SETTINGS_BYTES)
        if (folder / name).exists()
        else None
        for name in ("tokenizer_config.json", "added_tokens.json")
    )
    section = Section(settings, file="tokenizer_config.json") if settings is not None else None
    added = added_tokens(document, section, older, n_rows=MAX_VOCABULARY)
    found = probes([added[number].text for number in sorted(added)])
    texts = [probe.text for probe in found]
    if tokenizer is not None and tokenizer.model.raw("type") == "Unigram":
        steps = text_steps_of_json(tokenizer.values)
        pieces = tokenizer.pieces()
        return found, _reference_of_unigram(tokenizer.values, pieces, steps, added, texts)
    if tokenizer is not None:
        reference = reference_of_json(tokenizer, added, texts)
        if tekken_settings(folder) is not None:
            pieces = [piece for text in texts for piece in reference.pieces(text)]
            check_merges(folder, pieces)
        return found, reference
    model = read_sentencepiece_model(folder / MODEL_FILE)
    return found, reference_of_model(model, added, texts)


def reference_of_json(
    tokenizer: TokenizerJson, added: Mapping[int, AddedToken], texts: Sequence[str]
) -> ReferenceTokenizer:
    """Return the tokenizer of a tokenizer.json for `texts`."""
    is_part = _parts_of(texts)
    model = dict(cast(Mapping[str, Any], tokenizer.values["model"]))
    unknown = model.get("unk_token")
    # Added tokens keep their ids as entries of the model: otherwise they would be numbered anew.
    ids = {token.content: token.id for token in added.values()}
    contents, known = set(ids), set[str]()
    n_tokens = 0
    for text, number in tokenizer.tokens():
        n_tokens += 1
        if text in contents:
            known.add(text)
        if text in contents or text == unknown or is_part(text):
            ids[text] = number
    _check_numbers(added, known, n_tokens)
    model["vocab"] = ids
    model["merges"] = [
        [left, right]
        for left, right in tokenizer.merges()
        if left in ids and right in ids and left + right in ids
    ]
    return ReferenceTokenizer(
        {**tokenizer.values, "model": model, "truncation": None, "padding": None}
    )


def _reference_of_unigram(
    values: Mapping[str, Any],
    pieces: Iterator[tuple[str, float]],
    text: TextSteps,
    added: Mapping[int, AddedToken],
    texts: Sequence[str],
) -> ReferenceTokenizer:
    """Return a unigram tokenizer for `texts`: its ids are places in a list, so it has its own."""
    is_part = _parts_of([*texts, *normalized(values, texts)])
    model = dict(values["model"])
    unknown = model.get("unk_id")
    entries: list[dict[str, Any]] = values.get("added_tokens") or []
    contents = {str(entry["content"]) for entry in entries}
    kept: list[tuple[str, float]] = []
    ids: list[int] = []
    # What an unknown character costs depends on the worst score of all.
    lowest, n_pieces = (0.0, "", -1), 0
    letters = set(contents)
    for number, (piece, score) in enumerate(pieces):
        n_pieces += 1
        if number != unknown and piece not in contents and not is_byte_piece(piece):
            letters |= set(piece)
        lowest = min(lowest, (score, piece, number))
        if number == unknown or piece in contents or is_part(piece):
            kept.append((piece, score))
            ids.append(number)
    if lowest[2] not in {-1, *ids}:
        kept.append((lowest[1], lowest[0]))
        ids.append(lowest[2])
    if not isinstance(unknown, int) or unknown not in ids:
        raise CheckpointError("the tokenizer has no piece for what is unknown", hint=DAMAGED_HINT)
    known = {piece for piece, _ in kept}
    _check_numbers(added, known & contents, n_pieces)
    ids += [token.id for token in added.values() if token.content not in known]
    model |= {"vocab": kept, "unk_id": ids.index(unknown)}
    whole = {**values, "model": model, "truncation": None, "padding": None}
    return ReferenceTokenizer(whole, ids, text=text, plain=plain_bytes(letters))


def _check_numbers(added: Mapping[int, AddedToken], known: set[str], n_tokens: int) -> None:
    """Check that added tokens have the ids that `tokenizers` gives them.

    A token of the model keeps its id; others are numbered in order behind all that came before,
    whatever the file says.
    """
    last = -1
    for token in added.values():
        number = token.id if token.content in known else max(last + 1, n_tokens)
        if token.id != number:
            raise ConversionError(
                f"tokenizer.json gives added token {quoted(token.content)} the id {token.id},"
                f" `tokenizers` reads it as {number}",
                hint="save the tokenizer again with the transformers that the model is used with",
            )
        last = max(last, number)


def reference_of_model(
    model: SentencePieceModel, added: Mapping[int, AddedToken], texts: Sequence[str]
) -> ReferenceTokenizer:
    """Return the tokenizer that transformers makes of a tokenizer.model, for `texts`."""
    if model.model_type == UNIGRAM:
        return _unigram_of_model(model, added, texts)
    is_part = _parts_of(texts)
    ids = {token.content: token.id for token in added.values()}
    pieces = list(zip(model.texts, model.types, model.scores, strict=True))
    ids |= {
        text: number
        for number, (text, kind, _) in enumerate(pieces)
        if kind in (*_FOUND_FIRST, BYTE) or is_part(text)
    }
    scores = {text: score for text, kind, score in pieces if text in ids and kind == NORMAL}
    merges = sorted(
        (-scores[text], -cut, text)
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    )
    prepend = [{"type": "Prepend", "prepend": "▁"}] if model.add_dummy_prefix else []
    # transformers adds all that is no plain piece (convert_slow_tokenizer.py).
    found_first = [text for text, kind, _ in pieces if kind in _FOUND_FIRST and text in ids]
    contents = list(dict.fromkeys([*(token.content for token in added.values()), *found_first]))
    return ReferenceTokenizer(
        {
            "version": "1.0",
            "added_tokens": _entries(contents, ids),
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, REPLACE_SPACES]},
            "model": {
                "type": "BPE",
                "unk_token": next((text for text, kind, _ in pieces if kind == UNKNOWN), None),
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": ids,
                "merges": [[text[:-cut], text[-cut:]] for _, cut, text in merges],
            },
        }
    )


def _unigram_of_model(
    model: SentencePieceModel, added: Mapping[int, AddedToken], texts: Sequence[str]
) -> ReferenceTokenizer:
    text = text_steps_of_model(model)
    ids = {token.content: token.id for token in added.values()}
    pieces = enumerate(zip(model.texts, model.types, strict=True))
    ids |= {piece: number for number, (piece, kind) in pieces if kind in _FOUND_FIRST}
    values = {
        "version": "1.0",
        "added_tokens": _entries(sorted(ids, key=lambda piece: ids[piece]), ids),
        "normalizer": normalizer_of(text, runtime=False),
        "model": {
            "type": "Unigram",
            "unk_id": model.types.index(UNKNOWN) if UNKNOWN in model.types else None,
            "byte_fallback": BYTE in model.types,
        },
    }
    scored = iter(zip(model.texts, model.scores, strict=True))
    return _reference_of_unigram(values, scored, text, added, texts)


def _entries(contents: Sequence[str], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"id": ids[text], "content": text, "special": True, **dict.fromkeys(FLAGS, False)}
        for text in contents
    ]


def _parts_of(texts: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a token can be part of a text, in any form in which a model sees it."""
    letters = byte_letters()
    forms: set[str] = set()
    for text in texts:
        for form in (text, unicodedata.normalize("NFC", text)):
            marked = form.replace(" ", "▁")
            forms |= {form, f"▁{marked}", "".join(letters[byte] for byte in form.encode())}
    whole = "\n".join(sorted(forms))
    starts = {
        whole[at : at + n_letters]
        for n_letters in range(1, _N_LETTERS + 1)
        for at in range(len(whole))
    }
    return lambda token: (
        token.startswith("<0x") or (token[:_N_LETTERS] in starts and token in whole)
    )
