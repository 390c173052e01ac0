"""Tokenizer files of a checkpoint -> the vocabulary keys of a GGUF file.

Reads tokenizer.json, tokenizer.model, tokenizer_config.json and the chat template; needs neither
`tokenizers` nor `transformers`. The keys, their order and the token types are those that
llama.cpp's converter writes (conversion/base.py, llama.py and gemma.py `set_vocab`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.chat_template import chat_templates
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import MAX_VOCABULARY, Section
from edgevlm_convert.json_file import quoted, read_json
from edgevlm_convert.metadata import Value, boolean, string
from edgevlm_convert.vocabulary import sentencepiece, sentencepiece_model
from edgevlm_convert.vocabulary.added import AddedToken, added_tokens, by_content
from edgevlm_convert.vocabulary.byte_level import byte_level_keys
from edgevlm_convert.vocabulary.gemma4 import LATE_KEYS as GEMMA4_LATE_KEYS
from edgevlm_convert.vocabulary.gemma4 import MODEL_TYPES as GEMMA4_TEXTS
from edgevlm_convert.vocabulary.gemma4 import gemma4_keys
from edgevlm_convert.vocabulary.pre_tokenizers import choose_pre_tokenizer, recognise_normalizer
from edgevlm_convert.vocabulary.sentencepiece_model import BPE, UNIGRAM, SentencePieceModel
from edgevlm_convert.vocabulary.special import check_end, end_keys, read_specials, special_keys
from edgevlm_convert.vocabulary.structure import fields_of
from edgevlm_convert.vocabulary.tekken import tekken_settings
from edgevlm_convert.vocabulary.tokenizer_json import TokenizerJson, read_tokenizer_json
from edgevlm_convert.vocabulary.unigram import UNKNOWN_ID, unigram_keys

_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_MAX_ADDED_BYTES = 16_000_000
# Text models that llama.cpp converts as Llama (conversion/llama.py), whose keys differ a little.
_LLAMA = ("llama", "mistral", "mixtral", "granite", "granite4_vision_text")
_GRANITE_ROWS = 49152


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One kind of vocabulary, read.

    Attributes:
        keys: of the tokens.
        adds_by_default: what llama.cpp adds to a text when a file does not say.
        space_prefix: a space is put in front of a text.
        normalizer: what llama.cpp leaves out, or "".
        late_keys: that stand behind the chat template, and hold whatever a setting says.
    """

    keys: Mapping[str, Value]
    adds_by_default: tuple[str, ...]
    space_prefix: bool
    normalizer: str = ""
    late_keys: Mapping[str, Value] = field(default_factory=dict[str, Value])


def vocabulary(
    checkpoint: Checkpoint,
    *,
    n_rows: int,
    runtime_tokens: Sequence[str],
    pre: str | None = None,
) -> dict[str, Value]:
    """Return the `tokenizer.*` keys, padded to the embedding's rows.

    A normalizer, which llama.cpp does not apply, is kept as `edgevlm.tokenizer.normalizer`; what
    ends an answer besides EOS as `edgevlm.tokenizer.end_token_ids`.

    Args:
        checkpoint: the folder and its config.
        n_rows: rows of the token embedding.
        runtime_tokens: tokens that llama.cpp looks up for this projector; without one libmtmd
            aborts the process at the first image.
        pre: llama.cpp's name of the pre-tokenizer, where its structure is not known.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConversionError: a tokenizer that llama.cpp cannot reproduce, or that is not this model's.
    """
    tokenizer = read_tokenizer_json(checkpoint.folder)
    document = tokenizer.document if tokenizer else None
    settings = _settings(checkpoint)
    older = checkpoint.folder / "added_tokens.json"
    added = added_tokens(
        document,
        settings,
        read_json(older, max_bytes=_MAX_ADDED_BYTES) if older.exists() else None,
        n_rows=n_rows,
    )
    kind = _read_kind(checkpoint, tokenizer, added, n_rows, runtime_tokens, pre)
    specials = read_specials(
        settings,
        document.raw("post_processor") if document else None,
        adds_by_default=kind.adds_by_default if tokenizer else (),
    )
    generation = checkpoint.optional_json("generation_config.json")
    special = special_keys(specials, checkpoint.config, generation, added, n_rows=n_rows)
    _check_end(kind, special)
    llama = _text_model(checkpoint.config) in _LLAMA
    values: dict[str, Value] = {}
    written = _SPACE_PREFIX in kind.keys
    if llama and settings and settings.has("add_prefix_space") and not written:
        values[_SPACE_PREFIX] = boolean(kind.space_prefix)
    values |= kind.keys
    values |= special
    if UNKNOWN_ID in kind.keys:
        # What the model itself falls back to, whatever a setting calls unknown.
        values[UNKNOWN_ID] = kind.keys[UNKNOWN_ID]
    values |= chat_templates(checkpoint.folder, settings)
    if llama and n_rows == _GRANITE_ROWS:
        values["tokenizer.ggml.add_bos_token"] = boolean(False)
    if kind.keys["tokenizer.ggml.model"].value == "llama" and not kind.space_prefix:
        values.setdefault(_SPACE_PREFIX, boolean(False))
    values |= kind.late_keys
    values |= end_keys(checkpoint.config, generation, special, n_rows=n_rows)
    if kind.normalizer:
        values["edgevlm.tokenizer.normalizer"] = string(kind.normalizer)
    return values


def _settings(checkpoint: Checkpoint) -> Section | None:
    """Return tokenizer_config.json; what it lacks as tekken.json means it, where that is alone."""
    settings = checkpoint.optional_json("tokenizer_config.json")
    tekken = tekken_settings(checkpoint.folder)
    if settings is None or tekken is None:
        return settings or tekken
    return settings.over(tekken)


def added_token_id(checkpoint: Checkpoint, text: str) -> int | None:
    """Return the id of an added token by its text, None when there is none.

    Raises:
        CheckpointError: a file is malformed.
        ConversionError: two files contradict each other.
    """
    tokenizer = read_tokenizer_json(checkpoint.folder)
    settings = checkpoint.optional_json("tokenizer_config.json")
    document = tokenizer.document if tokenizer else None
    added = added_tokens(document, settings, None, n_rows=MAX_VOCABULARY)
    return by_content(added).get(text)


def _read_kind(
    checkpoint: Checkpoint,
    tokenizer: TokenizerJson | None,
    added: Mapping[int, AddedToken],
    n_rows: int,
    runtime_tokens: Sequence[str],
    pre_name: str | None,
) -> _Kind:
    """Read the vocabulary as what it is: byte-level BPE or one of SentencePiece's."""
    if tokenizer is not None and _is_byte_level(tokenizer):
        pre = choose_pre_tokenizer(
            tokenizer.document.raw("pre_tokenizer"),
            ignore_merges=tokenizer.model.boolean("ignore_merges", default=False),
            name=pre_name,
        )
        normalizer = recognise_normalizer(tokenizer.document.raw("normalizer"))
        keys = byte_level_keys(
            tokenizer, added, n_rows=n_rows, pre=pre, runtime_tokens=runtime_tokens
        )
        adds = ("bos",) if pre.adds_bos else ()
        return _Kind(keys=keys, adds_by_default=adds, space_prefix=False, normalizer=normalizer)
    if pre_name is not None:
        raise ConversionError(
            f"`--pre {pre_name}` was given, and a SentencePiece vocabulary has no pre-tokenizer",
            hint="leave `--pre` out",
        )
    if _text_model(checkpoint.config) in GEMMA4_TEXTS:
        keys = gemma4_keys(tokenizer, added, n_rows=n_rows, runtime_tokens=runtime_tokens)
        # It adds BOS whatever a file says.
        return _Kind(keys=keys, adds_by_default=(), space_prefix=False, late_keys=GEMMA4_LATE_KEYS)
    return _read_sentencepiece(checkpoint.folder, tokenizer, added, n_rows, runtime_tokens)


def _read_sentencepiece(
    folder: Path,
    tokenizer: TokenizerJson | None,
    added: Mapping[int, AddedToken],
    n_rows: int,
    runtime_tokens: Sequence[str],
) -> _Kind:
    """Read the pieces of tokenizer.model, or of tokenizer.json where there is no such file."""
    path = folder / sentencepiece_model.FILE
    model = sentencepiece_model.read_sentencepiece_model(path) if path.exists() else None
    if model is None and tokenizer is None:
        raise CheckpointError(
            f"`{folder}` has neither tokenizer.json nor tokenizer.model",
            hint="save the tokenizer beside the weights (`save_pretrained` of transformers)",
        )
    if _is_unigram(tokenizer, model):
        keys = unigram_keys(tokenizer, model, added, n_rows=n_rows, runtime_tokens=runtime_tokens)
        return _Kind(keys=keys, adds_by_default=("eos",), space_prefix=False)
    prefix = sentencepiece.adds_space_prefix(tokenizer, model)
    pieces = sentencepiece.read_pieces(tokenizer, model, n_rows=n_rows)
    keys = sentencepiece.sentencepiece_keys(
        pieces, added, n_rows=n_rows, runtime_tokens=runtime_tokens
    )
    return _Kind(keys=keys, adds_by_default=("bos",), space_prefix=prefix)


def _check_end(kind: _Kind, special: Mapping[str, Value]) -> None:
    model, tokens, types = (
        kind.keys[f"tokenizer.ggml.{name}"].value for name in ("model", "tokens", "token_type")
    )
    check_end(cast(str, model), cast(Sequence[str], tokens), cast(Sequence[int], types), special)


def _is_byte_level(tokenizer: TokenizerJson) -> bool:
    """Return whether a tokenizer.json is byte-level BPE; SentencePiece if not.

    Raises:
        ConversionError: it is neither.
    """
    kind = tokenizer.model.raw("type")
    decoder = fields_of(tokenizer.document.raw("decoder")).get("type")
    if kind == "BPE" and decoder == "ByteLevel":
        return True
    if kind == "Unigram" or (kind == "BPE" and tokenizer.model.raw("byte_fallback") is True):
        return False
    raise ConversionError(
        f"the tokenizer is {quoted(str(kind))} with decoder {quoted(str(decoder))}, "
        "neither byte-level BPE nor SentencePiece",
        hint="byte-level BPE, SentencePiece BPE with byte fallback and unigram can be converted",
    )


def _is_unigram(tokenizer: TokenizerJson | None, model: SentencePieceModel | None) -> bool:
    """Return whether the pieces are unigram's, not BPE's.

    Raises:
        ConversionError: neither, or the two files say different things.
    """
    kinds = {"Unigram": UNIGRAM, "BPE": BPE}
    by_json = kinds.get(str(tokenizer.model.raw("type"))) if tokenizer else None
    kind = model.model_type if model else by_json
    if kind not in (UNIGRAM, BPE) or by_json not in (None, kind):
        beside = f", tokenizer.json says {by_json}" if by_json else ""
        raise ConversionError(
            f"tokenizer.model is of the SentencePiece type {kind}{beside}",
            hint="unigram (1) and BPE (2) can be converted; remove the file that is not this"
            " model's",
        )
    return kind == UNIGRAM


def _text_model(config: Section) -> object:
    return config.section("text_config").raw("model_type") if config.has("text_config") else None
