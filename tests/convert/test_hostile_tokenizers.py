"""Tokenizer files that are broken or meant to do harm: each gets its own clear error and a hint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.vocabulary import tokenizer_json
from edgevlm_convert.vocabulary.reference import open_reference
from edgevlm_convert.vocabulary.reference_tokenizer import ReferenceTokenizer

from edgevlm.errors import CheckpointError, EdgeVLMError
from tests.convert.test_sentencepiece import keys_of
from tests.synthetic_tokenizer import write_json, write_tokenizer
from tests.tokenizers.llama_spm import write_tokenizer_llava
from tests.tokenizers.parts import Config, added_token, bos_template

Change = Callable[[Config], object]


def _added(**values: Any) -> Change:
    return lambda t: t["added_tokens"][0].update(values)


def _vocab(token: str, number: Any) -> Change:
    return lambda t: t["model"]["vocab"].update({token: number})


def _without(token: str) -> Change:
    return lambda t: t["model"]["vocab"].pop(token)


BYTE_LEVEL: list[tuple[str, Change, str]] = [
    ("an added token of 70,000 characters", _added(content="x" * 70_000), "has 70000 characters"),
    ("an empty added token", _added(content=""), "has 0 characters"),
    ("an added id of 400 digits", _added(id=10**400), "`added_tokens[].id`"),
    ("a negative added id", _added(id=-1), "`added_tokens[].id`"),
    ("an added id that is not whole", _added(id=292.0), "`added_tokens[].id`"),
    ("added tokens that are numbers", lambda t: t.update(added_tokens=[1]), "`added_tokens[].id`"),
    ("more added tokens than any model", lambda t: t.update(added_tokens=[1] * (1 << 21)),
        "adds 2097152 tokens"),
    ("an id of 400 digits", _vocab("x", 10**400), "only 320 rows"),
    ("an id of 2^63", _vocab("x", 1 << 63), "only 320 rows"),
    ("an id with a fraction", _vocab("x", 1.5), "has the id `1.5`"),
    ("an id that is a list", _vocab("x", [[[]]]), "has the id `[[[]]]`"),
    ("an id that is nothing", _vocab("x", None), "has the id `None`"),
    ("a merge with itself", lambda t: t["model"].update(merges=[["t", "t"]] * 9), "known tokens"),
    ("a merge of nothing", lambda t: t["model"].update(merges=[["", ""]]), "known tokens"),
    ("merges that are an object", lambda t: t["model"].update(merges={"a": "b"}), "list of merges"),
    ("merges inside of merges", lambda t: t["model"].update(merges=[[["t", "h"]]]), "not a merge"),
    ("a step that holds itself", lambda t: t.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [t["pre_tokenizer"]]}),
        "unknown pre-tokenizer: Sequence"),
    ("an expression of a megabyte", lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(
        pattern={"Regex": "(" * 500_000 + ")" * 500_000}), "unknown pre-tokenizer"),
    ("an expression that is a number", lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(
        pattern={"Regex": 5}), "unknown pre-tokenizer"),
    ("a token that the template does not define", lambda t: t.update(
        post_processor=bos_template("<|im_start|>", 293) | {"special_tokens": {}}),
        "adds `<|im_start|>` and does not define it"),
    ("a model that is a list", lambda t: t.update(model=[]), "`model`"),
    ("options of other types", lambda t: t["model"].update(ignore_merges="yes"), "ignore_merges"),
]  # fmt: skip
SENTENCEPIECE: list[tuple[str, Change, str]] = [
    # llama.cpp ends the process at a text that needs the byte.
    ("a byte without a piece", _without("<0x0A>"), "no piece `<0x0A>`"),
    ("the last byte without a piece", _without("<0xFF>"), "no piece `<0xFF>`"),
    ("a piece of 400 digits", _vocab("x", 10**400), "only 320 rows"),
]


def _check(folder: Path, change: Change, expected: str) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    change(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(EdgeVLMError) as caught:
        keys_of(folder)
    assert expected in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message + caught.value.hint) < 2500


@pytest.mark.parametrize(
    ("change", "expected"), [row[1:] for row in BYTE_LEVEL], ids=[row[0] for row in BYTE_LEVEL]
)
def test_byte_level(tmp_path: Path, change: Change, expected: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    _check(tmp_path, change, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [row[1:] for row in SENTENCEPIECE],
    ids=[row[0] for row in SENTENCEPIECE],
)
def test_sentencepiece(tmp_path: Path, change: Change, expected: str) -> None:
    write_tokenizer_llava(tmp_path, model=False, declare=False)
    _check(tmp_path, change, expected)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model": {"vocab": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}", "too deeply"),
        (b'{"added_tokens": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
        (b'{"model": {"vocab": {"\xff": 1}}}', "not UTF-8"),
        (b'{"model": {"vocab": {"\\ud800": 1}, "type": "BPE"}}', "half a character"),
        (b'{"model": {"vocab": {"a": 1, "a": 2}}}', "gives `a` twice"),
        (b'{"model": {"vocab": {"a": NaN}}}', "holds NaN"),
        (b'{"model": {"vocab": {"a": ' + b"9" * 5000 + b"}}}", "not valid JSON"),
        (b'{"model": {"vocab": {"a": 1}', "not valid JSON"),
        (b'{"model": {"vocab": {"a" 1}}}', "not valid JSON"),
        (b'{"model": {"vocab": {"a\\', "not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:40].decode("latin-1"),
)
def test_json(tmp_path: Path, raw: bytes, expected: str) -> None:
    decoder = b'"decoder": {"type": "ByteLevel"}'
    write_tokenizer(tmp_path)
    whole = raw.replace(b"{", b"{" + decoder + b", ", 1).replace(
        b'"vocab"', b'"type": "BPE", "vocab"' if b'"type"' not in raw else b'"vocab"'
    )
    steps = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]
    whole = whole.replace(b"{", b'{"pre_tokenizer": ' + json.dumps(steps).encode() + b", ", 1)
    (tmp_path / "tokenizer.json").write_bytes(whole)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(EdgeVLMError) as caught:
        keys_of(tmp_path)
    assert expected in caught.value.message
    assert caught.value.hint


def test_more_merges_than_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer_json, "_MAX_MERGES", 5)
    with pytest.raises(CheckpointError, match="more than 5 merges"):
        keys_of(tmp_path)


def test_an_expression_that_takes_for_ever(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    # `--pre` takes a tokenizer whose structure is unknown, as far as to the proof.
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(x+x+)+y"}
    write_json(tmp_path / "tokenizer.json", tokenizer)
    _, reference = open_reference(tmp_path)
    with pytest.raises(CheckpointError, match=r"`tokenizers` cannot read .* retry-limit"):
        reference.encode("x" * 60)


def test_a_panic_of_tokenizers(tmp_path: Path) -> None:
    values: Config = {
        "version": "1.0",
        "added_tokens": [added_token(1, "<s>")],
        "post_processor": bos_template("<s>", 1) | {"special_tokens": {}},
        "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1}, "merges": []},
    }
    reference = ReferenceTokenizer(values)
    assert reference.encode("a") == [0]
    with pytest.raises(CheckpointError, match="`tokenizers` cannot read"):
        reference.encode("a", add_special=True)
