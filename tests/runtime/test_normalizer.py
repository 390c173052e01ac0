"""What llama.cpp leaves out of a tokenizer is done before it is asked: Unicode normalization."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from tokenizers import Tokenizer

from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import Mutation, nothing, text
from tests.synthetic import write_checkpoint

KEY = "edgevlm.tokenizer.normalizer"
DECOMPOSED = "cafe\u0301 A\u030angstro\u0308m \u1112\u1161\u11ab o\u0302\u0301"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Qwen's kind, whose tokenizer has NFC."""
    folder = tmp_path_factory.mktemp("nfc")
    write_checkpoint(folder, text={"num_hidden_layers": 3})
    return folder


def prompt_ids(checkpoint: Path, folder: Path, mutation: Mutation | None = None) -> list[int]:
    """Return what a chat asks the text model, from the GGUF file alone."""
    plan = plan_conversion(checkpoint)
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(
        mutation(plan) if mutation else plan, text_path=paths[0], mmproj_path=paths[1]
    )
    with open_vlm(model=paths[0], n_ctx=512, device="cpu") as vlm:
        return vlm.token_ids(DECOMPOSED)


def ids_of_transformers(checkpoint: Path, question: str) -> list[int]:
    """Return the ids that transformers gives: its fast tokenizers are those of `tokenizers`."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    rendered = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(rendered, add_special_tokens=False).ids


def test_a_decomposed_accent_has_the_ids_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    assert prompt_ids(checkpoint, tmp_path) == ids_of_transformers(checkpoint, DECOMPOSED)


def test_a_file_without_the_key_is_left_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    ids = prompt_ids(checkpoint, tmp_path, text(nothing, {KEY: None}))
    assert ids != ids_of_transformers(checkpoint, DECOMPOSED)
    assert len(ids) > len(ids_of_transformers(checkpoint, DECOMPOSED))
