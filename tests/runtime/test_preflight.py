"""Headers that llama.cpp must never see: kinds, counts, pairs, and tokens it looks up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgevlm.errors import GGUFError, ModelLoadError, SourceNotFoundError
from edgevlm.runtime.preflight import check_projector, check_text_model

TEXT: dict[str, Any] = {
    "qwen3vl.block_count": 2,
    "qwen3vl.context_length": 64,
    "qwen3vl.embedding_length": 32,
    "qwen3vl.attention.head_count": 2,
    "qwen3vl.n_deepstack_layers": 1,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "<|vision_start|>", "<|vision_end|>"],
    "tokenizer.ggml.token_type": [1, 3, 3],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 99,
    "tokenizer.chat_template": "{{ messages }}",
    "edgevlm.tokenizer.normalizer": "NFC",
}
PROJECTOR: dict[str, Any] = {
    "clip.has_vision_encoder": True,
    "clip.projector_type": "qwen3vl_merger",
    "clip.vision.projection_dim": 32,
    "clip.vision.image_size": 64,
    "clip.vision.patch_size": 16,
    "clip.vision.embedding_length": 16,
    "clip.vision.block_count": 2,
    "clip.vision.attention.head_count": 2,
    "clip.vision.spatial_merge_size": 2,
    "clip.vision.is_deepstack_layers": [True, False],
}


def write(path: Path, architecture: str, values: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    writer.add_tensor("w", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write(tmp_path / "text.gguf", "qwen3vl", TEXT)


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    return write(tmp_path / "mmproj.gguf", "clip", PROJECTOR)


def test_a_pair_that_fits(text: Path, projector: Path) -> None:
    file, facts = check_text_model(text)
    assert facts.chat_template == "{{ messages }}"
    assert facts.special_token_ids == {"bos_token": 0}  # 99 is beyond the vocabulary
    assert facts.normalizer == "NFC"
    span = check_projector(projector, file)
    assert span.template == "<|vision_start|><|image_pad|><|vision_end|>"


def test_a_projector_given_as_text_model_and_the_reverse(text: Path, projector: Path) -> None:
    with pytest.raises(GGUFError, match="is a projector, not a text model") as caught:
        check_text_model(projector)
    assert "--mmproj" in caught.value.hint
    file, _ = check_text_model(text)
    with pytest.raises(GGUFError, match=r"is a text model \(qwen3vl\), not an mmproj"):
        check_projector(text, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip.vision.projection_dim": 64}, "gives rows of 64 values, the text model"),
        ({"clip.vision.is_deepstack_layers": [True, True]}, "2 deepstack layers"),
        ({"clip.projector_type": "resampler9"}, "'resampler9' .* is not supported"),
    ],
)
def test_a_projector_of_another_model(
    text: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file, _ = check_text_model(text)
    other = write(tmp_path / "other.gguf", "clip", PROJECTOR | change)
    with pytest.raises(ModelLoadError, match=words) as caught:
        check_projector(other, file)
    assert caught.value.hint


@pytest.mark.parametrize("token", ["<|vision_start|>", "<|vision_end|>"])
def test_vocabulary_without_a_token_that_libmtmd_writes(
    projector: Path, tmp_path: Path, token: str
) -> None:
    tokens = [one if one != token else "b" for one in TEXT["tokenizer.ggml.tokens"]]
    path = write(tmp_path / "no.gguf", "qwen3vl", TEXT | {"tokenizer.ggml.tokens": tokens})
    file, _ = check_text_model(path)
    with pytest.raises(ModelLoadError, match="lacks") as caught:
        check_projector(projector, file)
    assert token in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"clip.vision.patch_size": 0},
        {"clip.vision.attention.head_count": 0},
        {"clip.vision.spatial_merge_size": 0},
        {"clip.vision.image_size": (1 << 32) - 1},
        {"clip.vision.block_count": "two"},
        {"clip.has_vision_encoder": False},
    ],
)
def test_absurd_projectors(text: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    file, _ = check_text_model(text)
    path = write(tmp_path / "absurd.gguf", "clip", PROJECTOR | change)
    with pytest.raises(GGUFError) as caught:
        check_projector(path, file)
    assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"qwen3vl.block_count": 0},
        {"qwen3vl.attention.head_count": 0},
        {"qwen3vl.embedding_length": "wide"},
        {"general.type": "imatrix"},
        {"tokenizer.ggml.tokens": "none"},
        {"tokenizer.ggml.token_type": [1, 3]},
    ],
)
def test_absurd_text_models(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "absurd.gguf", "qwen3vl", TEXT | change)
    with pytest.raises(GGUFError) as caught:
        check_text_model(path)
    assert caught.value.hint


def test_missing_files(text: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        check_text_model(tmp_path / "missing.gguf")
    file, _ = check_text_model(text)
    with pytest.raises(SourceNotFoundError):
        check_projector(tmp_path / "missing.gguf", file)
