"""What of a tokenizer is carried over, and what llama.cpp would read otherwise and is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.metadata import TypedValue
from edgevlm_convert.vocabulary.rows import CONTROL, NORMAL, UNUSED, USER_DEFINED

from edgevlm.errors import CheckpointError, ConversionError, EdgeVLMError
from tests.convert.tricks import EditJson, Header
from tests.synthetic import write_checkpoint

Change = Callable[[Header], object]


def metadata_of(folder: Path) -> dict[str, TypedValue]:
    return dict(plan_conversion(folder).text.metadata)


def value_of(folder: Path, key: str) -> Any:
    found = metadata_of(folder).get(f"tokenizer.{key}")
    return None if found is None else found.value


def test_types_and_padding(tiny: Path) -> None:
    tokens = cast(list[str], value_of(tiny, "ggml.tokens"))
    types = cast(list[int], value_of(tiny, "ggml.token_type"))
    assert len(tokens) == len(types) == 320
    assert (tokens[0], types[0]) == ("Ā", NORMAL)
    assert (tokens[292], types[292]) == ("<|endoftext|>", CONTROL)
    assert (tokens[299], types[299]) == ("<tool_call>", USER_DEFINED)
    assert list(tokens[300:]) == [f"[PAD{row}]" for row in range(300, 320)]
    assert set(types[300:]) == {UNUSED}


def test_ids_flags_and_template(tiny: Path) -> None:
    values = {key: value.value for key, value in metadata_of(tiny).items() if not key.endswith("s")}
    assert values["tokenizer.ggml.eos_token_id"] == 294
    assert values["tokenizer.ggml.padding_token_id"] == 292
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.bos_token_id" not in values
    assert str(values["tokenizer.chat_template"]).startswith("{% for message in messages %}")


def test_ids_come_from_the_config_when_the_settings_name_none(
    broken: Path, edit_json: EditJson
) -> None:
    def name(config: Header) -> None:
        config["text_config"] |= {"bos_token_id": 292, "eos_token_id": 293}
        config["pad_token_id"] = 291

    edit_json("config.json", name)
    assert value_of(broken, "ggml.bos_token_id") == 292
    assert value_of(broken, "ggml.eos_token_id") == 294
    assert value_of(broken, "ggml.padding_token_id") == 292


@pytest.mark.parametrize("number", [-1, 320, 10**12])
def test_ids_beyond_the_vocabulary(broken: Path, edit_json: EditJson, number: int) -> None:
    edit_json("config.json", lambda config: config.update(bos_token_id=number))
    with pytest.raises(CheckpointError, match="bos_token_id"):
        plan_conversion(broken)


def test_merges_as_text_and_as_pairs_are_the_same(broken: Path, edit_json: EditJson) -> None:
    pairs = value_of(broken, "ggml.merges")

    def join(tokenizer: Header) -> None:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]

    edit_json("tokenizer.json", join)
    assert value_of(broken, "ggml.merges") == pairs
    assert pairs[:2] == ("t h", "th e")


def test_a_processors_template_comes_before_the_tokenizers(
    broken: Path, edit_json: EditJson
) -> None:
    (broken / "chat_template.jinja").write_text("jinja")
    edit_json("tokenizer_config.json", lambda settings: settings.update(chat_template="text only"))
    assert value_of(broken, "chat_template") == "jinja"
    (broken / "chat_template.json").write_text('{"chat_template": "json"}')
    assert value_of(broken, "chat_template") == "json"
    (broken / "processor_config.json").write_text('{"chat_template": "processor"}')
    assert value_of(broken, "chat_template") == "processor"
    for name in ("processor_config.json", "chat_template.json"):
        (broken / name).write_text("{}")
    assert value_of(broken, "chat_template") == "jinja"
    (broken / "chat_template.jinja").unlink()
    assert value_of(broken, "chat_template") == "text only"


def test_named_templates_as_a_list(broken: Path, edit_json: EditJson) -> None:
    (broken / "chat_template.jinja").unlink()
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    edit_json("tokenizer_config.json", lambda settings: settings.update(chat_template=named))
    assert value_of(broken, "chat_template") == "d"
    assert value_of(broken, "chat_template.tool") == "t"
    assert list(value_of(broken, "chat_templates")) == ["tool"]


def test_named_templates_as_an_object_and_as_files(broken: Path, edit_json: EditJson) -> None:
    (broken / "additional_chat_templates").mkdir()
    (broken / "additional_chat_templates" / "tool_use.jinja").write_text("from a file")
    assert value_of(broken, "chat_template.tool_use") == "from a file"
    assert value_of(broken, "chat_template").startswith("{% for message in messages %}")
    (broken / "chat_template.jinja").unlink()
    assert value_of(broken, "chat_template") is None
    assert list(value_of(broken, "chat_templates")) == ["tool_use"]
    (broken / "additional_chat_templates" / "tool_use.jinja").unlink()
    named = {"rag-1": "r", "other": "o"}
    edit_json("tokenizer_config.json", lambda settings: settings.update(chat_template=named))
    assert value_of(broken, "chat_template") is None
    assert value_of(broken, "chat_template.rag_1") == "r"
    assert list(value_of(broken, "chat_templates")) == ["other", "rag_1"]


@pytest.mark.parametrize(
    "found",
    [3, ["text"], [{"name": "default"}], {"default": 3}, {"a-b": "x", "a_b": "y"}, {"": "x"}],
    ids=str,
)
def test_templates_that_are_none(broken: Path, edit_json: EditJson, found: Any) -> None:
    (broken / "chat_template.jinja").unlink()
    edit_json("tokenizer_config.json", lambda settings: settings.update(chat_template=found))
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(broken)
    assert "chat" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("eos", "expected"),
    [
        ([294, 292], [292, 294]),
        ([294, 294], [294]),
        (293, [293]),
        (294, None),
        ([294], None),
        (None, None),
        ([], None),
    ],
    ids=str,
)
def test_every_end_token_is_kept(
    broken: Path, edit_json: EditJson, eos: Any, expected: Any
) -> None:
    edit_json("generation_config.json", lambda settings: settings.update(eos_token_id=eos))
    found = metadata_of(broken).get("edgevlm.tokenizer.end_token_ids")
    assert (None if found is None else list(cast(list[int], found.value))) == expected


def test_end_tokens_of_the_config_are_kept(broken: Path, edit_json: EditJson) -> None:
    (broken / "generation_config.json").unlink(missing_ok=True)
    edit_json("tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    edit_json("config.json", lambda config: config["text_config"].update(eos_token_id=[293, 292]))
    assert value_of(broken, "ggml.eos_token_id") == 293
    ends = metadata_of(broken)["edgevlm.tokenizer.end_token_ids"].value
    assert list(cast(list[int], ends)) == [292, 293]


def test_an_end_that_only_the_generation_config_names(broken: Path, edit_json: EditJson) -> None:
    edit_json("tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    edit_json("generation_config.json", lambda settings: settings.update(eos_token_id=294))
    edit_json("config.json", lambda config: config["text_config"].pop("eos_token_id", None))
    assert value_of(broken, "ggml.eos_token_id") == 294


def test_no_end_at_all(broken: Path, edit_json: EditJson) -> None:
    (broken / "generation_config.json").unlink(missing_ok=True)
    edit_json("tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    for section in ("text_config", None):
        edit_json(
            "config.json",
            lambda config, section=section: (config[section] if section else config).pop(
                "eos_token_id", None
            ),
        )
    # Token 11 is what llama.cpp takes for a byte-level vocabulary.
    with pytest.raises(ConversionError, match=r"no file says which token ends a text .* `ċ`"):
        plan_conversion(broken)


@pytest.mark.parametrize("eos", [320, -1, "</s>", [294, True], [[294]]], ids=str)
def test_end_tokens_that_are_none(broken: Path, edit_json: EditJson, eos: Any) -> None:
    edit_json("generation_config.json", lambda settings: settings.update(eos_token_id=eos))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        plan_conversion(broken)


def test_a_template_in_json(broken: Path) -> None:
    (broken / "chat_template.jinja").unlink()
    (broken / "chat_template.json").write_text('{"chat_template": "json"}')
    assert value_of(broken, "chat_template") == "json"
    (broken / "chat_template.json").unlink()
    assert value_of(broken, "chat_template") is None


def test_no_normalizer_is_no_key(broken: Path, edit_json: EditJson) -> None:
    edit_json("tokenizer.json", lambda tokenizer: tokenizer.update(normalizer=None))
    assert "edgevlm.tokenizer.normalizer" not in metadata_of(broken)


def test_a_large_vocabulary(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, n_tokens=20_000)
    tokens = cast(list[str], value_of(tmp_path, "ggml.tokens"))
    assert len(set(tokens)) == 20_020
    assert len(value_of(tmp_path, "ggml.merges")) == 20_000 - 256 - 8


# --- what cannot be carried over ------------------------------------------------------------------


def _model(**values: Any) -> Change:
    return lambda tokenizer: tokenizer["model"].update(values)


def _vocabulary(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda tokenizer: change(tokenizer["model"]["vocab"])


def _added(number: int, **values: Any) -> Change:
    return lambda tokenizer: tokenizer["added_tokens"][number].update(values)


def _without_added(content: str) -> Change:
    def change(tokenizer: Header) -> None:
        tokenizer["added_tokens"] = [
            token for token in tokenizer["added_tokens"] if token["content"] != content
        ]

    return change


REFUSED: list[tuple[str, Change, str]] = [
    ("word pieces", _model(type="WordPiece"), "neither byte-level BPE nor SentencePiece"),
    ("unigram, pieces as an object", _model(type="Unigram", unk_id=0), "a list of pieces"),
    ("no model", lambda t: t.pop("model"), "`model` is missing"),
    ("another decoder", lambda t: t.update(decoder={"type": "Metaspace"}), "neither byte-level"),
    ("byte fallback", _model(byte_fallback=True), "`model.byte_fallback`"),
    ("dropout", _model(dropout=0.1), "`model.dropout`"),
    ("ignored merges", _model(ignore_merges=True), "with `ignore_merges`"),
    ("word suffix", _model(end_of_word_suffix="</w>"), "`model.end_of_word_suffix`"),
    ("normalizer", lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer `Lowercase`"),
    (
        "tokens added by itself",
        lambda t: t.update(post_processor={"type": "RobertaProcessing"}),
        "post-processor `RobertaProcessing`",
    ),
    ("no vocabulary", _model(vocab={}), "`model.vocab`"),
    ("vocabulary is a list", _model(vocab=[]), "`model.vocab`"),
    ("no merges", _model(merges=None), "`model.merges` is missing"),
    ("merge of three", _model(merges=[["t", "h", "e"]]), "is not a merge"),
    ("merge of numbers", _model(merges=[[1, 2]]), "is not a merge"),
    ("merge of unknown tokens", _model(merges=[["t", "zzz"]]), "is of no known tokens"),
    ("id is a word", _vocabulary(lambda v: v.update(a="5")), "token `a` has the id `5`"),
    ("id is negative", _vocabulary(lambda v: v.update(a=-5)), "token `a` has the id `-5`"),
    ("id is true", _vocabulary(lambda v: v.update(a=True)), "token `a` has the id `True`"),
    ("id twice", _vocabulary(lambda v: v.update(a=0)), "two tokens have the same id"),
    ("id beyond the embedding", _vocabulary(lambda v: v.update(a=320)), "only 320 rows"),
    ("added id beyond it", _added(7, id=400), "only 320 rows"),
    ("added id is a word", _added(0, id="0"), "`added_tokens[].id`"),
    ("added token is a number", _added(0, content=5), "`added_tokens[].content`"),
    ("added twice", _added(0, id=3), "contradicts the vocabulary"),
    ("no vision start", _without_added("<|vision_start|>"), "`<|vision_start|>`"),
    ("no vision end", _without_added("<|vision_end|>"), "`<|vision_end|>`"),
]


@pytest.mark.parametrize(
    ("change", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(broken: Path, edit_json: EditJson, change: Change, expected: str) -> None:
    edit_json("tokenizer.json", change)
    # Without it the second file would contradict the first before anything else is seen.
    edit_json("tokenizer_config.json", lambda settings: settings.pop("added_tokens_decoder"))
    with pytest.raises(EdgeVLMError) as caught:
        plan_conversion(broken)
    assert expected in caught.value.message
    assert caught.value.hint


def test_settings_that_add_another_token(broken: Path, edit_json: EditJson) -> None:
    def add(settings: Header) -> None:
        settings["added_tokens_decoder"]["300"] = {"content": "<extra>", "special": True}

    edit_json("tokenizer_config.json", add)
    with pytest.raises(ConversionError, match="adds token `<extra>`"):
        plan_conversion(broken)


def test_a_vocabulary_far_smaller_than_the_embedding(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", text={"vocab_size": 300 + 1024})
    assert len(value_of(tmp_path / "a", "ggml.tokens")) == 1324
    write_checkpoint(tmp_path / "b", text={"vocab_size": 300 + 1025})
    with pytest.raises(ConversionError, match="1025 rows without a token"):
        plan_conversion(tmp_path / "b")


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, text={"vocab_size": 299})
    with pytest.raises(ConversionError, match="has only 299 rows"):
        plan_conversion(tmp_path)
