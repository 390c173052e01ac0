"""What is written tokenizes as the checkpoint does; what does not is refused, or has a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.metadata import Value, boolean, string
from edgevlm_convert.tokenizer import vocabulary
from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME, GPT2, TABLE, PreTokenizer
from edgevlm_convert.vocabulary.probes import N_PROBES, NEWER_UNICODE, probes
from edgevlm_convert.writer import plan_gguf, write_gguf

from edgevlm.build.convert import convert_model
from edgevlm.build.tokenizer_proof import LIMITS, prove_tokenizer
from edgevlm.errors import CheckpointError, ConversionError, ModelLoadError
from edgevlm.manifest import TokenizerRecord, read_manifest
from tests.synthetic import write_checkpoint
from tests.synthetic_tokenizer import byte_letters, write_json, write_tokenizer
from tests.tokenizers.byte_level import (
    write_tokenizer_llama3,
    write_tokenizer_qwen35,
    write_tokenizer_smollm,
)
from tests.tokenizers.gemma import write_tokenizer_gemma
from tests.tokenizers.llama_spm import write_tokenizer_llava, write_tokenizer_llava_mistral
from tests.tokenizers.parts import Config, added_token

N_ROWS = 320
MAKERS: dict[str, Callable[..., None]] = {
    "qwen2": write_tokenizer,
    "qwen35": write_tokenizer_qwen35,
    "smollm": write_tokenizer_smollm,
    "llama3": write_tokenizer_llama3,
    "llava": write_tokenizer_llava,
    "mistral": write_tokenizer_llava_mistral,
    "gemma": write_tokenizer_gemma,
}
SENTENCEPIECE = ("llava", "mistral", "gemma")


def write_vocabulary(
    folder: Path,
    changes: Mapping[str, Value] | None = None,
    *,
    n_rows: int = N_ROWS,
    pre: str | None = None,
) -> Path:
    """Write a GGUF file with nothing but the vocabulary of a folder, some keys changed."""
    config = Section({"text_config": {"model_type": "llama"}}, file="config.json")
    checkpoint = Checkpoint(folder=folder, config=config, tensors={})
    keys = vocabulary(checkpoint, n_rows=n_rows, runtime_tokens=(), pre=pre)
    keys |= {f"tokenizer.ggml.{name}": value for name, value in (changes or {}).items()}
    path = folder / "vocabulary.gguf"
    metadata = {"general.architecture": string("llama"), **keys}
    write_gguf(plan_gguf(metadata=metadata, tensors=[]), path)
    return path


def proved(folder: Path, **options: Any) -> TokenizerRecord:
    return prove_tokenizer(folder, write_vocabulary(folder, **options))


def edit(folder: Path, change: Callable[[Config], object]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def limits(record: TokenizerRecord) -> list[str]:
    return [limit.name for limit in record.limits]


# --- the probes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "added", [[], [" "], ["<s>"], ["<a>", "<b>", "<c>"], [f"<{n}>" for n in range(30)]], ids=len
)
def test_there_are_500_texts_no_two_alike(added: list[str]) -> None:
    found = probes(added)
    assert len(found) == len({probe.text for probe in found}) == N_PROBES
    assert found == probes(added)
    for token in [token for token in added if token.strip()][:12]:
        assert sum(token in probe.text for probe in found) >= 3


# --- agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_agrees(tmp_path: Path, name: str) -> None:
    MAKERS[name](tmp_path)
    record = proved(tmp_path)
    assert record.n_probes == N_PROBES
    assert limits(record) == (["normalizer"] if name in ("qwen2", "qwen35") else [])


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_agrees_from_one_file_alone(tmp_path: Path, name: str) -> None:
    MAKERS[name](tmp_path / "json", model=False)
    assert proved(tmp_path / "json").n_different == 0
    if name == "gemma":
        # `<image_soft_token>` is in no tokenizer.model; its settings are for a tokenizer.json.
        return
    MAKERS[name](tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert proved(tmp_path / "model").n_different == 0


@pytest.fixture(scope="module")
def crossing() -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary whose merges cross every border in the probes: each split shows in the ids."""
    letters = byte_letters()
    texts = ["".join(letters[byte] for byte in probe.text.encode()) for probe in probes([])]
    ids = {letter: number for number, letter in enumerate(letters)}
    merges: list[list[str]] = []
    for n_letters in (1, 2):
        for text in texts:
            for at in range(len(text) - n_letters):
                whole = text[at : at + n_letters + 1]
                if whole[:-1] in ids and whole not in ids:
                    ids[whole] = len(ids)
                    merges.append([whole[:-1], whole[-1]])
    return ids, merges


def write_crossing(
    folder: Path, crossing: tuple[dict[str, int], list[list[str]]], known: PreTokenizer
) -> int:
    """Write that vocabulary with a pre-tokenizer of the table and return its size."""
    ids, merges = crossing
    expressions = list(known.expressions)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    use_regex = expressions[-1] == GPT2
    steps: list[Config] = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in (expressions[:-1] if use_regex else expressions)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [added_token(len(ids), "<|im_end|>")],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*steps, byte_level | {"use_regex": use_regex}],
        },
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": known.ignore_merges,
            "vocab": ids,
            "merges": merges,
        },
    }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return len(ids) + 1


@pytest.mark.parametrize(
    "known", [known for known in TABLE if known.expressions], ids=lambda known: known.name
)
def test_the_table_is_what_llama_cpp_does(
    tmp_path: Path, crossing: tuple[dict[str, int], list[list[str]]], known: PreTokenizer
) -> None:
    n_rows = write_crossing(tmp_path, crossing, known)
    record = proved(tmp_path, n_rows=n_rows, pre=known.name)
    # Characters of Unicode 16 are letters to `tokenizers`, and nothing to llama.cpp.
    assert set(limits(record)) <= {known.limit, "unicode"}
    assert record.n_different < 60


# --- limits ---------------------------------------------------------------------------------------


def test_flags_of_added_tokens_are_a_limit(tmp_path: Path) -> None:
    write_tokenizer_smollm(tmp_path)
    edit(tmp_path, lambda t: t["added_tokens"][3].update(lstrip=True))
    record = proved(tmp_path)
    assert limits(record) == ["added-token-flags"]
    assert record.limits[0].reason == LIMITS["added-token-flags"]
    assert record.n_different == record.limits[0].n_probes > 0


def test_a_space_at_the_very_beginning_only_is_a_limit(tmp_path: Path) -> None:
    write_tokenizer_llava(tmp_path)
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    edit(tmp_path, lambda t: t.update(normalizer=None, pre_tokenizer=metaspace))
    record = proved(tmp_path)
    assert limits(record) == ["space-prefix"]
    assert record.limits[0].first == " Hello world"


def test_newer_characters_are_a_limit(
    tmp_path: Path, crossing: tuple[dict[str, int], list[list[str]]]
) -> None:
    n_rows = write_crossing(tmp_path, crossing, BY_NAME["qwen2"])
    record = proved(tmp_path, n_rows=n_rows)
    assert limits(record) == ["unicode"]
    newer = {probe.text for probe in probes([]) if probe.group == NEWER_UNICODE}
    assert record.limits[0].first in {ascii(text)[1:-1] for text in newer}


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("smollm", {"pre": string("qwen2")}, "llama.cpp tokenizes '"),
        ("gemma", {"add_space_prefix": boolean(True)}, "llama.cpp tokenizes 'a' (prose) as ["),
        ("llama3", {"add_bos_token": boolean(False)}, "llama.cpp adds special tokens"),
        ("llava", {"add_eos_token": boolean(True)}, "llama.cpp adds special tokens"),
    ],
)
def test_any_other_difference_is_an_error(
    tmp_path: Path, name: str, changes: dict[str, Value], expected: str
) -> None:
    MAKERS[name](tmp_path)
    with pytest.raises(ConversionError) as caught:
        prove_tokenizer(tmp_path, write_vocabulary(tmp_path, changes))
    assert expected in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 600


def test_a_name_that_does_not_fit(
    tmp_path: Path, crossing: tuple[dict[str, int], list[list[str]]]
) -> None:
    n_rows = write_crossing(tmp_path, crossing, BY_NAME["qwen2"])
    written = write_vocabulary(tmp_path, n_rows=n_rows, pre="smaug-bpe")
    with pytest.raises(ConversionError) as caught:
        prove_tokenizer(tmp_path, written)
    # The first text with two digits in a row, which are one piece there.
    assert "&d=%20#top' (prose) as [" in caught.value.message
    assert "`--pre`" in caught.value.hint


def test_ids_that_tokenizers_would_not_give(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    edit(tmp_path / "checkpoint", lambda t: t["added_tokens"][-1].update(id=305))
    settings = tmp_path / "checkpoint" / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"299"', '"305"'))
    with pytest.raises(ConversionError, match="`tokenizers` reads it as 299"):
        convert_model(tmp_path / "checkpoint", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_tokenizers_cannot_read(tmp_path: Path) -> None:
    write_tokenizer_smollm(tmp_path)
    written = write_vocabulary(tmp_path)
    edit(tmp_path, lambda t: t.update(pre_tokenizer={"type": "None"}))
    with pytest.raises(CheckpointError, match="`tokenizers` cannot read"):
        prove_tokenizer(tmp_path, written)


def test_a_vocabulary_that_llama_cpp_cannot_load(tmp_path: Path) -> None:
    write_tokenizer_smollm(tmp_path)
    written = write_vocabulary(tmp_path, {"pre": string("no-such")})
    with pytest.raises(ModelLoadError, match="unknown pre-tokenizer type"):
        prove_tokenizer(tmp_path, written)


def test_the_manifest_has_the_result(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    built = convert_model(tmp_path / "checkpoint", out=tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.tokenizer == built.manifest.tokenizer
    assert manifest.tokenizer is not None
    assert limits(manifest.tokenizer) == ["normalizer"]
