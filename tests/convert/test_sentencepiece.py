"""SentencePiece vocabularies: from tokenizer.model, from tokenizer.json, and hostile ones."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.metadata import Value
from edgevlm_convert.tokenizer import vocabulary
from edgevlm_convert.vocabulary.rows import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

from edgevlm.errors import CheckpointError, ConversionError, EdgeVLMError
from tests.tokenizers.gemma import write_tokenizer_gemma
from tests.tokenizers.llama_spm import write_tokenizer_llava, write_tokenizer_llava_mistral
from tests.tokenizers.parts import (
    Config,
    Piece,
    byte_pieces,
    sentencepiece_model,
    token_ids,
)

N_ROWS = 320
MAKERS = {
    "llava": (write_tokenizer_llava, "llama"),
    "mistral": (write_tokenizer_llava_mistral, "mistral"),
    "gemma": (write_tokenizer_gemma, "gemma3_text"),
}


def keys_of(
    folder: Path,
    model_type: str = "llama",
    *,
    n_rows: int = N_ROWS,
    runtime_tokens: tuple[str, ...] = (),
) -> dict[str, Value]:
    config = Section({"text_config": {"model_type": model_type}}, file="config.json")
    checkpoint = Checkpoint(folder=folder, config=config, tensors={})
    return vocabulary(checkpoint, n_rows=n_rows, runtime_tokens=runtime_tokens)


def plain(keys: dict[str, Value]) -> dict[str, Any]:
    return {
        key: list(value.value) if value.type.startswith("ARRAY") else value.value  # pyright: ignore
        for key, value in keys.items()
    }


def edit(folder: Path, name: str, change: Callable[[Config], object]) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    write_tokenizer_llava(tmp_path)
    return tmp_path


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    write_tokenizer_gemma(tmp_path)
    return tmp_path


# --- what is written ------------------------------------------------------------------------------


def test_llamas_keys_are_those_of_llama_cpps_converter(llava: Path) -> None:
    assert list(keys_of(llava)) == [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.unknown_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_sep_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.chat_template",
    ]
    keys = plain(keys_of(llava))
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("llama", "default")
    assert [keys[f"tokenizer.ggml.add_{kind}_token"] for kind in ("bos", "sep", "eos")] == [
        True,
        False,
        False,
    ]
    assert keys["tokenizer.ggml.bos_token_id"] == 1
    assert keys["tokenizer.ggml.padding_token_id"] == token_ids(llava)["<pad>"]


def test_llamas_types_and_scores(llava: Path) -> None:
    keys = plain(keys_of(llava))
    tokens, types, scores = (
        keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores")
    )
    assert len(tokens) == len(types) == len(scores) == N_ROWS
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    # `<unk>` is among the added tokens, which are control tokens.
    assert types[:4] == [CONTROL, CONTROL, CONTROL, BYTE]
    assert (tokens[259], types[259], scores[259]) == ("▁t", NORMAL, 0.0)
    assert (tokens[261], scores[261]) == ("▁the", -2.0)
    assert (tokens[298], types[298], scores[298]) == ("<image>", CONTROL, -1000.0)
    assert (tokens[319], types[319], scores[319]) == ("[PAD319]", UNUSED, -10000.0)


def test_gemmas_prefix_is_off_and_its_user_defined_pieces_are_found_first(gemma: Path) -> None:
    keys = plain(keys_of(gemma, "gemma3_text"))
    assert list(keys)[-1] == "tokenizer.ggml.add_space_prefix"
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    found = dict(zip(tokens, types, strict=True))
    assert found["<start_of_turn>"] == CONTROL
    assert found["<unused0>"] == CONTROL
    assert found["<mask>"] == CONTROL
    assert found["<h1>"] == USER_DEFINED
    assert found["\n\n"] == USER_DEFINED
    # SentencePiece's mark is a plain space in text.
    assert found["   "] == USER_DEFINED
    assert "▁▁▁" not in found
    assert tokens[299] == "<image_soft_token>"


def test_a_space_in_front_is_llamas_own_default_until_settings_name_it(llava: Path) -> None:
    assert "tokenizer.ggml.add_space_prefix" not in keys_of(llava)
    edit(llava, "tokenizer_config.json", lambda s: s.update(add_prefix_space=True))
    keys = keys_of(llava)
    assert next(iter(keys)) == "tokenizer.ggml.add_space_prefix"
    assert keys["tokenizer.ggml.add_space_prefix"].value is True
    # The setting is only llama.cpp's way to know it; the tokenizer itself decides.
    edit(llava, "tokenizer.json", lambda t: t["normalizer"]["normalizers"].pop(0))
    assert keys_of(llava)["tokenizer.ggml.add_space_prefix"].value is False


def test_without_a_bos_in_the_template_none_is_added(llava: Path) -> None:
    def remove(tokenizer: Config) -> None:
        tokenizer["post_processor"] = None

    edit(llava, "tokenizer.json", remove)
    edit(llava, "tokenizer_config.json", lambda s: s.pop("add_bos_token"))
    assert keys_of(llava)["tokenizer.ggml.add_bos_token"].value is False


@pytest.mark.parametrize("name", MAKERS)
def test_transformers_5_settings_lose_no_token(name: str, tmp_path: Path) -> None:
    maker, model_type = MAKERS[name]
    maker(tmp_path / "4")
    maker(tmp_path / "5", declare=False)
    four, five = (plain(keys_of(tmp_path / one, model_type)) for one in ("4", "5"))
    assert four == five


@pytest.mark.parametrize("name", MAKERS)
def test_tokenizer_json_alone_gives_the_same_tokens_in_the_same_order_of_merges(
    name: str, tmp_path: Path
) -> None:
    maker, model_type = MAKERS[name]
    maker(tmp_path / "both")
    maker(tmp_path / "json", model=False)
    both, alone = (plain(keys_of(tmp_path / one, model_type)) for one in ("both", "json"))
    with_scores, without = both.pop("tokenizer.ggml.scores"), alone.pop("tokenizer.ggml.scores")
    assert both == alone
    types = both["tokenizer.ggml.token_type"]
    tokens = both["tokenizer.ggml.tokens"]
    merged = [row for row in range(N_ROWS) if types[row] == NORMAL and len(tokens[row]) > 1]
    assert sorted(merged, key=lambda row: -with_scores[row]) == sorted(
        merged, key=lambda row: -without[row]
    )
    assert len({without[row] for row in merged}) == len(merged)


def test_tokenizer_model_alone(llava: Path) -> None:
    (llava / "tokenizer.json").unlink()
    keys = plain(keys_of(llava))
    assert keys["tokenizer.ggml.tokens"][298] == "<image>"
    assert keys["tokenizer.ggml.bos_token_id"] == 1
    assert keys["tokenizer.ggml.add_bos_token"] is True
    (llava / "tokenizer_config.json").unlink()
    (llava / "added_tokens.json").write_text('{"<image>": 298}')
    keys = plain(keys_of(llava))
    assert keys["tokenizer.ggml.tokens"][298] == "<image>"
    assert keys["tokenizer.ggml.token_type"][298] == USER_DEFINED
    assert keys["tokenizer.ggml.token_type"][0] == UNKNOWN


def test_a_token_that_is_defined_twice_keeps_the_vocabularys_id(llava: Path) -> None:
    def twice(tokenizer: Config) -> None:
        tokenizer["added_tokens"][-1] |= {"content": "▁the", "special": False}

    edit(llava, "tokenizer.json", twice)
    settings: Config = {"added_tokens_decoder": {}, "pad_token": None}
    edit(llava, "tokenizer_config.json", lambda s: s.update(settings))
    keys = plain(keys_of(llava))
    assert keys["tokenizer.ggml.token_type"][261] == USER_DEFINED
    assert keys["tokenizer.ggml.tokens"][299] == "[PAD299]"
    assert len(set(keys["tokenizer.ggml.tokens"])) == N_ROWS


def test_tokens_of_the_runtime(gemma: Path) -> None:
    known = ("<start_of_image>", "\n", "\n\n", "▁the", " the")
    keys_of(gemma, "gemma3_text", runtime_tokens=known)
    with pytest.raises(ConversionError, match="no token `<img>`"):
        keys_of(gemma, "gemma3_text", runtime_tokens=("<img>",))


# --- what cannot be carried over ------------------------------------------------------------------

REFUSED: list[tuple[str, Callable[[Config], object], str]] = [
    ("normalizer", lambda t: t.update(normalizer={"type": "NFKC"}), "normalizer NFKC"),
    (
        "pre-tokenizer",
        lambda t: t.update(pre_tokenizer={"type": "Whitespace"}),
        "pre-tokenizer Whitespace",
    ),
    ("no fallback", lambda t: t["model"].update(byte_fallback=False), "neither byte-level"),
    (
        "two tokens in front",
        lambda t: t["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<unk>"}}),
        "adds several tokens",
    ),
    (
        "another token in front",
        lambda t: t["post_processor"]["single"][0]["SpecialToken"].update(id="<unk>"),
        "adds `<unk>` in front, while BOS is `<s>`",
    ),
]


@pytest.mark.parametrize(
    ("change", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(llava: Path, change: Callable[[Config], object], expected: str) -> None:
    edit(llava, "tokenizer.json", change)
    with pytest.raises(ConversionError) as caught:
        keys_of(llava)
    assert expected in caught.value.message
    assert caught.value.hint


def _proto(*, pieces: list[Piece] | None = None, tail: bytes = b"") -> bytes:
    some = [Piece(text="<unk>", type=UNKNOWN), *byte_pieces(), Piece(text="▁", score=-1.0)]
    return sentencepiece_model(pieces or some, unk_id=0, add_dummy_prefix=True) + tail


HOSTILE: list[tuple[str, bytes, str]] = [
    ("empty", b"", "holds no pieces"),
    ("cut off", _proto()[:-3], "ends too early"),
    ("cut inside a piece", _proto()[:40], "ends too early"),
    ("a length beyond the end", b"\x0a\xff\xff\xff\xff\x0f", "ends too early"),
    ("a length of 2^63", b"\x0a" + b"\xff" * 9 + b"\x7f", "ends too early"),
    ("a varint without end", b"\x0a" + b"\xff" * 20, "ends too early"),
    ("a group", b"\x0b", "unknown kind 3"),
    ("a kind that is none", b"\x0f", "unknown kind 7"),
    ("a number in place of a piece", b"\x08\x01", "number where a message belongs"),
    ("a piece without text", _proto(tail=b"\x0a\x00"), "no text"),
    ("text that is not UTF-8", _proto(tail=b"\x0a\x04\x0a\x02\xff\xfe"), "not UTF-8"),
    ("a type that is none", _proto(tail=b"\x0a\x05\x0a\x01x\x18\x09"), "unknown type"),
    ("a type that is text", _proto(tail=b"\x0a\x06\x0a\x01x\x1a\x01x"), "unknown type"),
    (
        "a score that is no number",
        _proto(pieces=[Piece(text="x", score=float("nan"))]),
        "the score nan",
    ),
    ("an endless score", _proto(pieces=[Piece(text="x", score=float("inf"))]), "the score inf"),
    (
        "a score of eight bytes",
        _proto(tail=b"\x0a\x0c\x0a\x01x\x11" + struct.pack("<d", 1.0)),
        "the score nan",
    ),
    ("a piece twice", _proto(pieces=[Piece(text="x"), Piece(text="x")]), "a piece twice"),
    ("not such a file", b"\x80\x04\x95 a pickle", "tokenizer.model"),
    ("unigram", sentencepiece_model([Piece(text="x")], unk_id=0, add_dummy_prefix=True)
        .replace(b"\x18\x02", b"\x18\x01"), "SentencePiece type 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "expected"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE]
)
def test_a_hostile_tokenizer_model(llava: Path, raw: bytes, expected: str) -> None:
    (llava / "tokenizer.model").write_bytes(raw)
    with pytest.raises(EdgeVLMError) as caught:
        keys_of(llava)
    assert expected in caught.value.message
    assert caught.value.hint


def test_a_normalizing_tokenizer_model_alone(llava: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llava / name).unlink()
    # normalizer_spec again: a table of characters.
    (llava / "tokenizer.model").write_bytes(_proto(tail=b"\x1a\x03\x12\x01x"))
    with pytest.raises(ConversionError, match="normalizes the text"):
        keys_of(llava)


def test_more_pieces_than_rows(llava: Path) -> None:
    with pytest.raises(ConversionError, match="only 299 rows"):
        keys_of(llava, n_rows=299)
    shutil.rmtree(llava)
    write_tokenizer_gemma(llava)
    with pytest.raises(ConversionError, match="only 250 rows"):
        keys_of(llava, n_rows=250)


def test_a_folder_in_place_of_the_model(llava: Path) -> None:
    (llava / "tokenizer.model").unlink()
    (llava / "tokenizer.model").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        keys_of(llava)
