"""Pre-tokenizers are known by their structure; whatever is not known is shown."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.tokenizer import vocabulary
from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME, TABLE
from edgevlm_convert.vocabulary.pre_tokenizers import choose_pre_tokenizer

from edgevlm.errors import ConversionError
from tests.synthetic_tokenizer import tokenizer_json
from tests.tokenizers.byte_level import (
    LLAMA3_REGEX,
    write_tokenizer_llama3,
    write_tokenizer_qwen35,
    write_tokenizer_smollm,
)
from tests.tokenizers.llama_spm import write_tokenizer_llava

QWEN2 = tokenizer_json()["pre_tokenizer"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT2 = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _steps(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    changed = copy.deepcopy(QWEN2)
    change(changed["pretokenizers"])
    return changed


def name_of(node: object, *, ignore_merges: bool = False) -> str:
    return choose_pre_tokenizer(node, ignore_merges=ignore_merges).name


KNOWN: dict[str, tuple[Any, bool, str]] = {
    "as saved": (QWEN2, False, "qwen2"),
    "offsets do not matter": (_steps(lambda s: s[1].update(trim_offsets=True)), False, "qwen2"),
    "default left out": (_steps(lambda s: s[0].pop("invert")), False, "qwen2"),
    "a line end as itself": (
        _steps(
            lambda s: s[0]["pattern"].update(Regex=s[0]["pattern"]["Regex"].replace(r"\n", "\n"))
        ),
        False,
        "qwen2",
    ),
    "Llama 3": (sequence(split(LLAMA3_REGEX), BYTES), True, "llama-bpe"),
    "Llama 3's, merging": (sequence(split(LLAMA3_REGEX), BYTES), False, "smaug-bpe"),
    "GPT-2": (GPT2, False, "gpt-2"),
    "GPT-2 in a sequence": (sequence(GPT2), False, "gpt-2"),
    "digits by name": (sequence(DIGITS, GPT2), False, "smollm"),
    "digits by expression": (sequence(split(r"\p{N}"), GPT2), False, "smollm"),
    "three expressions": (
        sequence(
            split(r"\p{N}{1,3}"),
            split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            split(BY_NAME["deepseek-v3"].expressions[2]),
            BYTES,
        ),
        False,
        "deepseek-v3",
    ),
}
UNKNOWN: dict[str, Any] = {
    "none": None,
    "another expression": _steps(lambda s: s[0]["pattern"].update(Regex=r"\p{N}{1,4}")),
    "a plain string": _steps(lambda s: s[0].update(pattern={"String": " "})),
    "another behavior": _steps(lambda s: s[0].update(behavior="Removed")),
    "inverted": _steps(lambda s: s[0].update(invert=True)),
    "a space in front": _steps(lambda s: s[1].update(add_prefix_space=True)),
    "a space in front by default": _steps(lambda s: s[1].pop("add_prefix_space")),
    "two expressions": _steps(lambda s: s[1].update(use_regex=True)),
    "only bytes": _steps(lambda s: s.pop(0)),
    "no bytes": _steps(lambda s: s.pop(1)),
    "bytes first": _steps(lambda s: s.reverse()),
    "digits too": _steps(lambda s: s.insert(0, DIGITS)),
    "digits together": sequence({"type": "Digits", "individual_digits": False}, GPT2),
    "many steps": _steps(lambda s: s.extend([s[0]] * 1000)),
    "another kind": {"type": "Whitespace"},
    "not an object": 5,
    "steps that are none": {"type": "Sequence", "pretokenizers": {"a": 1}},
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_by_structure(case: str) -> None:
    node, ignore_merges, expected = KNOWN[case]
    assert name_of(node, ignore_merges=ignore_merges) == expected


@pytest.mark.parametrize("case", UNKNOWN)
def test_any_other_structure_is_shown_beside_the_nearest(case: str) -> None:
    with pytest.raises(ConversionError) as caught:
        name_of(UNKNOWN[case])
    assert caught.value.message.startswith("unknown pre-tokenizer: ")
    assert "the nearest known one is " in caught.value.hint
    assert "`--pre " in caught.value.hint
    assert len(caught.value.message + caught.value.hint) < 2000


def test_the_nearest_is_near() -> None:
    with pytest.raises(ConversionError) as caught:
        name_of(sequence(split(LLAMA3_REGEX.replace("{1,3}", "{1,2}")), BYTES), ignore_merges=True)
    assert "the nearest known one is llama-bpe, which splits at" in caught.value.hint


@pytest.mark.parametrize("known", TABLE, ids=lambda known: known.name)
def test_every_entry_is_found_by_its_own_expressions(known: Any) -> None:
    if not known.expressions:
        assert choose_pre_tokenizer(None, ignore_merges=False, name=known.name) == known
        return
    node = sequence(*map(split, known.expressions), BYTES)
    found = choose_pre_tokenizer(node, ignore_merges=known.ignore_merges)
    assert (found.expressions, found.ignore_merges) == (known.expressions, known.ignore_merges)


def test_no_name_is_there_twice() -> None:
    names = [name for known in TABLE for name in (known.name, *known.also)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("maker", "expected"),
    [
        (write_tokenizer_smollm, "smollm"),
        (write_tokenizer_llama3, "llama-bpe"),
        (write_tokenizer_qwen35, "qwen35"),
    ],
)
def test_published_forms(tmp_path: Path, maker: Callable[[Path], None], expected: str) -> None:
    maker(tmp_path)
    checkpoint = Checkpoint(folder=tmp_path, config=Section({}, file="config.json"), tensors={})
    keys = vocabulary(checkpoint, n_rows=320, runtime_tokens=("\n\n",))
    assert keys["tokenizer.ggml.pre"].value == expected
    # Llama 3's template adds BOS, the others add nothing.
    flag = keys.get("tokenizer.ggml.add_bos_token")
    assert (flag is not None and flag.value) == (expected == "llama-bpe")


def test_a_chosen_name(tmp_path: Path) -> None:
    write_tokenizer_smollm(tmp_path)
    checkpoint = Checkpoint(folder=tmp_path, config=Section({}, file="config.json"), tensors={})
    keys = vocabulary(checkpoint, n_rows=320, runtime_tokens=(), pre="starcoder")
    assert keys["tokenizer.ggml.pre"].value == "starcoder"
    with pytest.raises(ConversionError, match="no pre-tokenizer `qwen22`") as caught:
        vocabulary(checkpoint, n_rows=320, runtime_tokens=(), pre="qwen22")
    assert "qwen2" in caught.value.hint


def test_sentencepiece_takes_no_name(tmp_path: Path) -> None:
    write_tokenizer_llava(tmp_path)
    checkpoint = Checkpoint(folder=tmp_path, config=Section({}, file="config.json"), tensors={})
    with pytest.raises(ConversionError, match="has no pre-tokenizer"):
        vocabulary(checkpoint, n_rows=320, runtime_tokens=(), pre="qwen2")
