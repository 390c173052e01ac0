"""Proof that llama.cpp tokenizes with a written file as the checkpoint's own tokenizer does.

500 texts go through both. A difference must have the cause of a known limit of the runtime, and is
then recorded with it; any other is an error. What a limit explains is tried out: with its cause
taken away the two must agree.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME, PreTokenizer
from edgevlm_convert.vocabulary.probes import NEWER_UNICODE, Probe
from edgevlm_convert.vocabulary.reference import open_reference
from edgevlm_convert.vocabulary.reference_tokenizer import ReferenceTokenizer

from edgevlm.errors import ConversionError
from edgevlm.gguf_file import read_gguf
from edgevlm.manifest import TokenizerLimit, TokenizerRecord
from edgevlm.native.vocabulary import Vocabulary, open_vocabulary

# Known limits of llama.cpp (src/llama-vocab.cpp, src/unicode.cpp), by name.
LIMITS = {
    "normalizer": "llama.cpp does not normalize text for BPE (NFC); edgevlm does before it asks",
    "added-token-flags": "llama.cpp finds added tokens as they stand: lstrip, rstrip, single_word"
    " and normalized mean nothing to it",
    "space-prefix": "llama.cpp puts a space in front of every text that follows a control token or"
    " nothing, the tokenizer not of every one",
    "spaces-around": "llama.cpp's unigram puts no space in front of nothing but spaces, and keeps"
    " none around a text where runs of spaces become one",
    "charsmap": "llama.cpp replaces the longest match in the table of characters, as SentencePiece"
    " does, `tokenizers` does not",
    "byte-fallback": "llama.cpp's unigram writes the unknown token for characters that no piece"
    " covers, the tokenizer their bytes",
    "case": "with this pre-tokenizer llama.cpp knows case in ASCII only, or not at all, and marks"
    " that combine may be no part of a word",
    "spaces": "with this pre-tokenizer llama.cpp keeps spaces beyond ASCII out of ranges of"
    " characters",
    "unicode": "llama.cpp's tables are those of Unicode 15.1",
}
_MAX_SHOWN = 120
_PRE = "tokenizer.ggml.pre"
_NORMALIZER = "edgevlm.tokenizer.normalizer"


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """One text that the two tokenize differently, and the limits that explain it."""

    probe: Probe
    limits: tuple[str, ...]


def prove_tokenizer(checkpoint: Path, text_file: Path) -> TokenizerRecord:
    """Tokenize 500 texts with a checkpoint's tokenizer and with the file written from it.

    Args:
        checkpoint: folder with tokenizer.json, or tokenizer.model.
        text_file: the text model's GGUF file; only its vocabulary is loaded.

    Returns:
        How many texts agreed, and the limits that explain the others.

    Raises:
        CheckpointError: a tokenizer file cannot be read.
        ConversionError: a text comes out differently for no known reason.
        ModelLoadError: llama.cpp cannot load the vocabulary.
    """
    probes, reference = open_reference(checkpoint)
    metadata = read_gguf(text_file).metadata
    settings = {key: str(metadata[key].value) for key in (_PRE, _NORMALIZER) if key in metadata}
    with open_vocabulary(text_file) as vocabulary:
        comparison = _Comparison(vocabulary, reference, settings)
        differences = [found for probe in probes if (found := comparison.difference(probe))]
        comparison.check_special()
    limits = [
        TokenizerLimit(
            name=name, reason=reason, n_probes=len(texts), first=_shown(texts[0].probe.text)
        )
        for name, reason in LIMITS.items()
        if (texts := [found for found in differences if name in found.limits])
    ]
    return TokenizerRecord(n_probes=len(probes), n_different=len(differences), limits=limits)


class _Comparison:
    """llama.cpp's vocabulary beside the checkpoint's tokenizer."""

    def __init__(
        self, vocabulary: Vocabulary, reference: ReferenceTokenizer, settings: dict[str, str]
    ) -> None:
        self._vocabulary = vocabulary
        self._reference = reference
        self._normalizer = settings.get(_NORMALIZER, "")
        self._pre = BY_NAME.get(settings.get(_PRE, ""))
        self._variants: list[tuple[tuple[str, ...], ReferenceTokenizer]] | None = None

    def difference(self, probe: Probe) -> _Difference | None:
        """Return what differs; None: nothing.

        Raises:
            ConversionError: for no known reason.
        """
        expected, found = self._reference.encode(probe.text), self._encode(probe.text)
        if found == expected:
            return None
        limits = self._explanation(probe, expected)
        if limits is None:
            raise ConversionError(
                f"llama.cpp tokenizes '{_shown(probe.text)}' ({probe.group}) as"
                f" {_parting(found, expected)}, the checkpoint's tokenizer as"
                f" {_parting(expected, found)}",
                hint="this tokenizer cannot be converted; where its pre-tokenizer was chosen with"
                " `--pre`, choose another",
            )
        return _Difference(probe=probe, limits=limits)

    def check_special(self) -> None:
        """Check that BOS and EOS are added to a text alike.

        Raises:
            ConversionError: they are not.
        """
        expected = self._reference.encode("a", add_special=True)
        found = self._encode("a", add_special=True)
        if self._reference.adds_special and found != expected:
            raise ConversionError(
                f"llama.cpp adds special tokens to a text so: {found[:12]}, the checkpoint's"
                f" tokenizer so: {expected[:12]}",
                hint="`add_bos_token` and `add_eos_token` of tokenizer_config.json may contradict"
                " tokenizer.json",
            )

    def _encode(self, text: str, *, add_special: bool = False) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=add_special)

    def _normalized(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self._normalizer == "NFC" else text

    def _explanation(self, probe: Probe, expected: Sequence[int]) -> tuple[str, ...] | None:
        """Return the limits that explain a difference: without their causes the two agree."""
        text = self._normalized(probe.text)
        normalized = ("normalizer",) if text != probe.text else ()
        found = self._encode(text)
        if normalized and found == expected:
            return normalized
        for names, variant in self._changed():
            if found == variant.encode(probe.text):
                return normalized + names
        if probe.group == NEWER_UNICODE:
            return (*normalized, "unicode")
        return None

    def _changed(self) -> list[tuple[tuple[str, ...], ReferenceTokenizer]]:
        """Return the tokenizer with the causes of limits taken away, one by one and together."""
        if self._variants is None:
            self._variants = list(_variants(self._reference, self._pre))
        return self._variants


def _variants(
    reference: ReferenceTokenizer, pre: PreTokenizer | None
) -> Iterator[tuple[tuple[str, ...], ReferenceTokenizer]]:
    """Yield every combination of what can be taken away, and the limits that it stands for."""
    found: list[tuple[tuple[str, ...], ReferenceTokenizer]] = [((), reference)]
    if pre is not None and pre.runtime:
        found.append(((pre.limit,), reference.with_expressions(pre.runtime)))
    spaces = "spaces-around" if reference.is_unigram else "space-prefix"
    for name, changed in (
        ("charsmap", ReferenceTokenizer.with_runtime_table),
        (spaces, ReferenceTokenizer.with_runtime_spaces),
        ("byte-fallback", ReferenceTokenizer.without_byte_fallback),
        ("added-token-flags", ReferenceTokenizer.without_flags),
    ):
        pairs = [((*names, name), changed(one)) for names, one in found]
        found += [(names, one) for names, one in pairs if one is not None]
    yield from sorted(found[1:], key=lambda variant: len(variant[0]))


def _shown(text: str) -> str:
    """Return a text on one line; an added token in it may be long."""
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."


def _parting(ids: Sequence[int], others: Sequence[int]) -> str:
    """Return some ids from a little before the place where two lists part."""
    pairs = enumerate(zip(ids, others, strict=False))
    place = next((at for at, (one, other) in pairs if one != other), min(len(ids), len(others)))
    start = max(0, place - 2)
    before, after = "... " if start else "", " ..." if len(ids) > start + 8 else ""
    return f"[{before}{', '.join(map(str, ids[start : start + 8]))}{after}]"
