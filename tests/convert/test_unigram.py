"""Unigram vocabularies: what is written, from either file, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.vocabulary.rows import BYTE, CONTROL, NORMAL, UNUSED

from edgevlm.errors import CheckpointError, ConversionError, EdgeVLMError
from tests.convert.test_sentencepiece import edit, keys_of, plain
from tests.tokenizers.llama_spm import write_tokenizer_llava
from tests.tokenizers.parts import Config, Piece, added_token, sentencepiece_model
from tests.tokenizers.unigram import (
    TABLE,
    metaspace,
    precompiled,
    sequence,
    write_tokenizer_unigram,
)

N_ROWS = 320


@pytest.fixture
def unigram(tmp_path: Path) -> Path:
    write_tokenizer_unigram(tmp_path, model=False)
    return tmp_path


# --- what is written ------------------------------------------------------------------------------


def test_keys_types_and_scores(unigram: Path) -> None:
    keys = plain(keys_of(unigram))
    assert list(keys) == [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.unknown_token_id",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_sep_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.chat_template",
    ]
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items()}
    assert (ggml["model"], ggml["pre"]) == ("t5", "default")
    assert (ggml["add_space_prefix"], ggml["remove_extra_whitespaces"]) == (True, False)
    assert (ggml["bos_token_id"], ggml["eos_token_id"], ggml["unknown_token_id"]) == (1, 2, 0)
    # llama.cpp adds EOS to such a vocabulary where no key says otherwise.
    assert (ggml["add_bos_token"], ggml["add_eos_token"]) == (True, False)
    tokens, types, scores = ggml["tokens"], ggml["token_type"], ggml["scores"]
    assert len(tokens) == len(types) == len(scores) == N_ROWS
    assert types[:4] == [CONTROL, CONTROL, CONTROL, BYTE]
    assert (tokens[259], types[259], scores[259]) == ("▁t", NORMAL, -3.5)
    assert (tokens[298], types[298]) == ("<image>", CONTROL)
    assert (tokens[319], types[319]) == ("[PAD319]", UNUSED)


@pytest.mark.parametrize("charsmap", [b"", TABLE], ids=["identity", "table"])
def test_both_files_say_the_same(tmp_path: Path, charsmap: bytes) -> None:
    write_tokenizer_unigram(tmp_path, charsmap=charsmap)
    both = plain(keys_of(tmp_path))
    (tmp_path / "tokenizer.model").rename(tmp_path / "aside")
    assert plain(keys_of(tmp_path)) == both
    (tmp_path / "aside").rename(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.json").unlink()
    # Only the template of a tokenizer.json says something about separators.
    assert both.pop("tokenizer.ggml.add_sep_token") is False
    assert plain(keys_of(tmp_path)) == both
    table = both.get("tokenizer.ggml.precompiled_charsmap")
    assert table == (list(charsmap) or None)


def test_bytes_that_are_in_no_piece_are_characters(unigram: Path) -> None:
    def add(tokenizer: Config) -> None:
        tokenizer["added_tokens"].append(added_token(300, "#"))

    edit(unigram, "tokenizer.json", add)
    edit(unigram, "tokenizer_config.json", lambda s: s.pop("added_tokens_decoder"))
    keys = plain(keys_of(unigram))
    tokens, types, scores = (
        keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores")
    )
    assert (tokens[3 + 0x0A], types[3 + 0x0A]) == ("\n", NORMAL)
    assert scores[3 + 0x0A] == min(scores[3:298])
    assert (tokens[3 + ord("<")], types[3 + ord("<")]) == ("<", NORMAL)
    # A letter of other pieces, a space, a byte of longer characters, and what is added.
    for byte in (ord("t"), 0x20, 0xE4, 0x00):
        assert (tokens[3 + byte], types[3 + byte]) == (f"<0x{byte:02X}>", BYTE)
    assert tokens[3 + ord("#")] == "<0x23>"
    assert tokens[300] == "#"


def test_without_byte_fallback_bytes_are_pieces_like_others(unigram: Path) -> None:
    edit(unigram, "tokenizer.json", lambda t: t["model"].update(byte_fallback=False))
    assert plain(keys_of(unigram))["tokenizer.ggml.token_type"][3] == NORMAL


def test_a_piece_that_is_added_too_is_found_first(unigram: Path) -> None:
    def add(tokenizer: Config) -> None:
        tokenizer["added_tokens"].append(added_token(259, "▁t", special=False))

    edit(unigram, "tokenizer.json", add)
    keys = plain(keys_of(unigram))
    assert keys["tokenizer.ggml.tokens"][259] == " t"


# --- what cannot be carried over ------------------------------------------------------------------


def _model(**values: Any) -> Callable[[Config], object]:
    return lambda tokenizer: tokenizer["model"].update(values)


def _piece(*values: Any) -> Callable[[Config], object]:
    return lambda tokenizer: tokenizer["model"]["vocab"].append(
        list(values) if len(values) != 1 else values[0]
    )


def _normalizer(step: Any) -> Callable[[Config], object]:
    return lambda tokenizer: tokenizer.update(normalizer=step)


def _changed(at: int, value: int) -> bytes:
    return TABLE[: 4 + 4 * at] + struct.pack("<I", value) + TABLE[8 + 4 * at :]


def _table(raw: bytes) -> Callable[[Config], object]:
    return _normalizer(precompiled(raw))


REFUSED: list[tuple[str, Callable[[Config], object], str]] = [
    ("no unknown piece", _model(unk_id=None), "`model.unk_id`"),
    ("an unknown piece beyond all", _model(unk_id=298), "`model.unk_id` is 298"),
    ("an unknown piece that is a word", _model(unk_id="<unk>"), "`model.unk_id`"),
    ("no pieces", _model(vocab=None), "`model.vocab`"),
    ("an empty list", _model(vocab=[]), "`model.unk_id`"),
    ("a piece without score", _piece("x"), "is not a piece and its score"),
    ("a piece of three", _piece("x", 1.0, 2.0), "is not a piece and its score"),
    ("a piece that is a number", _piece(1, 1.0), "is not a piece and its score"),
    ("a score that is text", _piece("x", "1"), "is not a piece and its score"),
    ("a score that is true", _piece("x", True), "is not a piece and its score"),
    ("a score beyond 32 bits", _piece("x", 1e39), "is not a piece and its score"),
    ("a score of 400 digits", _piece("x", 10**400), "is not a piece and its score"),
    ("lower case", _normalizer({"type": "Lowercase"}), "unknown unigram tokenizer: Lowercase"),
    ("another mark", lambda t: t.update(
        pre_tokenizer=metaspace("always") | {"replacement": "_"}), "unknown unigram tokenizer"),
    ("a table that is not base64", _normalizer(
        {"type": "Precompiled", "precompiled_charsmap": "!"}), "is not base64"),
    ("a table that is a number", _normalizer(
        {"type": "Precompiled", "precompiled_charsmap": 5}), "is not base64"),
    ("an empty table", _table(b"\0\0\0\0"), "a size that is not its own"),
    ("a table with a size of 4 GB", _table(b"\xff\xff\xff\xff" + TABLE[4:]), "a size that"),
    ("a table with an odd size", _table(b"\x05\0\0\0" + TABLE[4:]), "a size that"),
    ("a table cut off", _table(TABLE[:200]), "a size that"),
    ("a table that points out", _table(_changed(7, 0x1FFFFF << 10)), "points out of itself"),
    ("a table without an end", _table(TABLE[:-1] + b"x"), "points out of its replacements"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(unigram: Path, change: Callable[[Config], object], expected: str) -> None:
    edit(unigram, "tokenizer.json", change)
    with pytest.raises(EdgeVLMError) as caught:
        keys_of(unigram)
    assert expected in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 2000


def test_a_replacement_beyond_the_end(unigram: Path) -> None:
    at = next(at for at in range(256) if struct.unpack_from("<I", TABLE, 4 + 4 * at)[0] >> 31)
    edit(unigram, "tokenizer.json", _table(_changed(at, 0x80FFFFFF)))
    with pytest.raises(CheckpointError, match="points out of its replacements"):
        keys_of(unigram)


def test_files_of_two_kinds(tmp_path: Path) -> None:
    write_tokenizer_unigram(tmp_path / "unigram")
    write_tokenizer_llava(tmp_path / "bpe")
    models = [tmp_path / name / "tokenizer.model" for name in ("unigram", "bpe")]
    swapped = [path.read_bytes() for path in reversed(models)]
    for path, raw in zip(models, swapped, strict=True):
        path.write_bytes(raw)
        with pytest.raises(ConversionError, match="of the SentencePiece type"):
            keys_of(path.parent)


@pytest.mark.parametrize("model_type", [0, 3, 4])
def test_other_kinds_of_sentencepiece(tmp_path: Path, model_type: int) -> None:
    raw = sentencepiece_model(
        [Piece(text="x")], unk_id=0, add_dummy_prefix=True, model_type=model_type
    )
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(ConversionError, match=f"of the SentencePiece type {model_type}"):
        keys_of(tmp_path)


def test_a_model_without_an_unknown_piece(tmp_path: Path) -> None:
    raw = sentencepiece_model([Piece(text="x")], unk_id=0, add_dummy_prefix=True, model_type=1)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(CheckpointError, match="no piece for what is unknown"):
        keys_of(tmp_path)


def test_more_pieces_than_rows(unigram: Path) -> None:
    with pytest.raises(ConversionError, match="only 290 rows"):
        keys_of(unigram, n_rows=290)


def test_a_pre_tokenizer_by_name(unigram: Path) -> None:
    edit(unigram, "tokenizer.json", _normalizer(sequence()))
    assert plain(keys_of(unigram))["tokenizer.ggml.add_space_prefix"] is False
