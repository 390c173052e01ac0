"""A unigram vocabulary in llama.cpp gives the ids of `tokenizers`, or a limit says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.metadata import boolean, string, u32
from edgevlm_convert.vocabulary.probes import N_PROBES
from edgevlm_convert.vocabulary.unigram_text import check_charsmap, replace_characters
from tokenizers import Tokenizer

from edgevlm.build.tokenizer_proof import prove_tokenizer
from edgevlm.errors import ConversionError
from edgevlm.native.vocabulary import open_vocabulary
from tests.build.test_tokenizer_proof import edit, limits, proved, write_vocabulary
from tests.tokenizers.parts import Config
from tests.tokenizers.unigram import (
    PREPEND,
    REPLACE,
    RUNS,
    TABLE,
    metaspace,
    precompiled,
    sequence,
    write_tokenizer_unigram,
)

SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always")]}
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
# Normalizer, pre-tokenizer, and the limits that they meet.
FORMS: dict[str, tuple[Any, Any, list[str]]] = {
    "no prefix": (sequence(REPLACE), None, []),
    "metaspace never": (None, metaspace("never"), []),
    "as Llama, legacy": (sequence(PREPEND, REPLACE), None, ["spaces-around"]),
    "as Llama": (None, metaspace("first"), ["spaces-around"]),
    "metaspace always": (None, metaspace("always", split=True), ["spaces-around"]),
    "runs as one": (sequence(RUNS), metaspace("always", split=True), ["spaces-around"]),
    "table, words": (precompiled(TABLE), SPLIT, ["spaces-around", "charsmap"]),
    "table, runs": (
        sequence(precompiled(TABLE), RUNS),
        metaspace("always", split=True),
        ["spaces-around", "charsmap"],
    ),
    "table, end cut off": (
        sequence(precompiled(TABLE), STRIP, RUNS),
        metaspace("always", split=True),
        ["spaces-around", "charsmap"],
    ),
    "table alone": (sequence(precompiled(TABLE), REPLACE), None, ["charsmap"]),
}


def write_form(folder: Path, name: str, *, byte_fallback: bool) -> list[str]:
    """Write a tokenizer of one form and return the limits that it meets."""
    normalizer, pre_tokenizer, expected = FORMS[name]
    write_tokenizer_unigram(folder, byte_fallback=byte_fallback)
    edit(folder, lambda t: t.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer))
    return expected


@pytest.mark.parametrize("name", FORMS)
def test_every_difference_is_a_limit(tmp_path: Path, name: str) -> None:
    expected = write_form(tmp_path, name, byte_fallback=False)
    record = proved(tmp_path)
    assert limits(record) == expected
    assert record.n_probes == N_PROBES
    assert (record.n_different > 0) == bool(expected)
    assert record.n_different < 160


@pytest.mark.parametrize("name", FORMS)
def test_bytes_become_the_unknown_token(tmp_path: Path, name: str) -> None:
    expected = write_form(tmp_path, name, byte_fallback=True)
    assert limits(proved(tmp_path)) == [*expected, "byte-fallback"]


def test_a_line_end_is_its_byte_where_no_piece_has_it(tmp_path: Path) -> None:
    write_form(tmp_path, "no prefix", byte_fallback=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("the\n\na!<", add_special_tokens=False).ids
    with open_vocabulary(write_vocabulary(tmp_path)) as vocabulary:
        assert vocabulary.tokenize("the\n\na!<") == ids
        assert vocabulary.tokenize("\n\u4f60\n") == [3 + 0x0A, 0, 3 + 0x0A]


@pytest.mark.parametrize("charsmap", [b"", TABLE], ids=["identity", "table"])
def test_tokenizer_model_alone(tmp_path: Path, charsmap: bytes) -> None:
    write_tokenizer_unigram(tmp_path, charsmap=charsmap)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    expected = ["charsmap"] if charsmap else ["spaces-around"]
    assert limits(proved(tmp_path)) == [*expected, "byte-fallback"]


def test_the_best_cut_is_found_not_the_greedy_one(tmp_path: Path) -> None:
    write_form(tmp_path, "no prefix", byte_fallback=False)
    with pytest.raises(ConversionError, match=r"llama\.cpp tokenizes 'Hello"):
        # What llama.cpp's converter writes for a decoder.
        prove_tokenizer(tmp_path, write_vocabulary(tmp_path, {"model": string("llama")}))


def test_the_unknown_token_is_the_models(tmp_path: Path) -> None:
    write_form(tmp_path, "no prefix", byte_fallback=False)

    def swap(tokenizer: Config) -> None:
        model = tokenizer["model"]
        model["unk_id"] = 1
        model["vocab"][:2] = model["vocab"][1::-1]
        tokenizer["added_tokens"] = tokenizer["added_tokens"][2:]

    edit(tmp_path, swap)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    edit(tmp_path, lambda t: t.update(post_processor=None))
    with open_vocabulary(write_vocabulary(tmp_path)) as vocabulary:
        assert vocabulary.tokenize("\u4f60") == [1]
    assert limits(proved(tmp_path)) == []
    with pytest.raises(ConversionError, match="the checkpoint's tokenizer as"):
        # What llama.cpp takes where no key says so.
        prove_tokenizer(tmp_path, write_vocabulary(tmp_path, {"unknown_token_id": u32(2)}))


@pytest.mark.parametrize("key", ["add_space_prefix", "remove_extra_whitespaces"])
def test_spaces_are_proved(tmp_path: Path, key: str) -> None:
    write_form(tmp_path, "no prefix", byte_fallback=False)
    with pytest.raises(ConversionError, match=r"llama\.cpp tokenizes"):
        prove_tokenizer(tmp_path, write_vocabulary(tmp_path, {key: boolean(True)}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("o\ufb01ce\u00a0a\u0301\u0301x", "ofice \u00e1\u0301x"),
        ("a\u0308a\u4f60\U0001f600\u2460", "\u00e4a\u4f60\U0001f6001"),
        ("a", "a"),
        ("a\0\n", "a\0 "),
    ],
    ids=ascii,
)
def test_characters_of_the_table(text: str, expected: str) -> None:
    check_charsmap(TABLE)
    assert replace_characters(text, TABLE) == expected
