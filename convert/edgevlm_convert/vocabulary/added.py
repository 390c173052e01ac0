"""Tokens that were added to a vocabulary: from which files, and which of them are control tokens.

tokenizer.json lists them as `added_tokens`; transformers 4 repeated them in tokenizer_config.json
(`added_tokens_decoder`), older slow tokenizers in added_tokens.json. llama.cpp's converter reads
the first for byte-level BPE and the other two for SentencePiece (conversion/base.py
`get_vocab_base`, `_create_vocab_sentencepiece`); read together they agree with either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, quoted

SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MAX_ADDED = 1 << 20
_MAX_LENGTH = 65_536
# Control tokens that some tokenizers do not mark as special (conversion/base.py).
_LOOKS_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))  # noqa: RUF001 (DeepSeek's bars)


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is found in a text before anything else is.

    Attributes:
        id: its row of the embedding.
        content: its text.
        special: it is marked as special, or tokenizer_config.json names it as one.
    """

    id: int
    content: str
    special: bool

    @property
    def is_control(self) -> bool:
        """It is a control token: text that a user types never becomes one."""
        return self.special or looks_special(self.content)

    @property
    def text(self) -> str:
        """What is written: SentencePiece's mark is a plain space in text that users type."""
        return self.content if self.is_control else self.content.replace("▁", " ")


def added_tokens(
    tokenizer: Section | None,
    settings: Section | None,
    older: Mapping[str, object] | None,
    *,
    n_rows: int,
) -> dict[int, AddedToken]:
    """Return the added tokens of all files by id.

    Args:
        tokenizer: tokenizer.json, or None.
        settings: tokenizer_config.json, or None.
        older: added_tokens.json, or None.
        n_rows: rows of the token embedding.

    Raises:
        CheckpointError: an entry is malformed, or two contradict each other.
        ConversionError: an id beyond the embedding, or a token that only one of two files adds.
    """
    named = _named_special(settings)
    added: dict[int, AddedToken] = {}
    contents: set[str] = set()
    for file, number, content, special in _entries(tokenizer, settings, older):
        if number >= n_rows:
            raise too_large(content, number, n_rows)
        if not content or len(content) > _MAX_LENGTH:
            raise CheckpointError(
                f"{file}: added token {number} has {len(content)} characters", hint=DAMAGED_HINT
            )
        known = added.get(number)
        if known is not None and known.content != content:
            raise CheckpointError(
                f"{file}: added token {quoted(content)} contradicts {quoted(known.content)},"
                f" which has the id {number} too",
                hint=DAMAGED_HINT,
            )
        if known is None and content in contents:
            # A second id for one text can never be reached: the first one counts.
            continue
        contents.add(content)
        special = special or content in named or (known is not None and known.special)
        added[number] = AddedToken(id=number, content=content, special=special)
    return added


def looks_special(token: str) -> bool:
    """Return whether a token has the looks of a control token, whatever its flag says."""
    return token in _LOOKS_SPECIAL or any(
        token.startswith(begin) and token.endswith(end) for begin, end in _SPECIAL_BRACKETS
    )


def token_text(entry: object) -> str:
    """Return a token given as text or as an object with `content`; empty when it is neither."""
    if isinstance(entry, dict):
        entry = cast(dict[str, object], entry).get("content")
    return entry if isinstance(entry, str) else ""


def too_large(token: str, number: int, n_rows: int) -> ConversionError:
    """Return the error for a token without a row."""
    return ConversionError(
        f"token {quoted(token)} has the id {number}, the embedding has only {n_rows} rows",
        hint="tokenizer and weights are of different models, or the embedding was not resized",
    )


def _entries(
    tokenizer: Section | None, settings: Section | None, older: Mapping[str, object] | None
) -> Iterator[tuple[str, int, str, bool]]:
    """Yield file, id, text and flag of every entry, tokenizer.json's first."""
    listed: set[tuple[int, str]] = set()
    if tokenizer is not None:
        for number, content, special in _of_tokenizer(tokenizer):
            listed.add((number, content))
            yield "tokenizer.json", number, content, special
    for number, content, special in _of_settings(settings):
        if tokenizer is not None and (number, content) not in listed:
            raise ConversionError(
                f"tokenizer_config.json adds token {quoted(content)} with the id {number}, "
                "tokenizer.json does not",
                hint="save the tokenizer again, so that both files agree",
            )
        yield "tokenizer_config.json", number, content, special
    # Where a newer file is there, it is the one that transformers reads.
    if older is not None and tokenizer is None:
        section = Section(older, file="added_tokens.json")
        for content in older:
            yield "added_tokens.json", section.integer(content, low=0, high=1 << 31), content, False


def _of_tokenizer(tokenizer: Section) -> Iterator[tuple[int, str, bool]]:
    entries = tokenizer.raw("added_tokens")
    found = cast(list[object], entries) if isinstance(entries, list) else []
    if len(found) > _MAX_ADDED:
        raise CheckpointError(
            f"tokenizer.json adds {len(found)} tokens, more than {_MAX_ADDED}", hint=DAMAGED_HINT
        )
    for entry in found:
        fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
        section = Section(fields, file="tokenizer.json", path="added_tokens[].")
        number = section.integer("id", low=0, high=1 << 31)
        yield number, section.text("content"), section.boolean("special", default=False)


def _of_settings(settings: Section | None) -> Iterator[tuple[int, str, bool]]:
    declared = settings.raw("added_tokens_decoder") if settings else None
    if not isinstance(declared, dict):
        return
    for number, entry in cast(dict[str, object], declared).items():
        fields = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
        section = Section(
            fields, file="tokenizer_config.json", path=f"added_tokens_decoder.{number[:20]}."
        )
        if not number.isdecimal() or not number.isascii() or len(number) > 9:
            section.fail("content", "an entry whose key is an id")
        yield int(number), section.text("content"), section.boolean("special", default=False)


def _named_special(settings: Section | None) -> set[str]:
    """Return the tokens that tokenizer_config.json names as special, whatever their flag says."""
    if settings is None:
        return set()
    named = {token_text(settings.raw(f"{kind}_token")) for kind in SPECIAL_KINDS}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        entries = settings.raw(key)
        if isinstance(entries, dict):
            entries = list(cast(dict[str, object], entries).values())
        if isinstance(entries, list):
            named |= {token_text(entry) for entry in cast(list[object], entries)}
    return named - {""}


def by_content(added: Mapping[int, AddedToken]) -> dict[str, int]:
    """Return ids by text."""
    return {token.content: token.id for token in added.values()}
