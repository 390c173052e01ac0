"""Headers that llama.cpp must never see: kinds, counts, pairs, and tokens it looks up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgevlm.errors import GGUFError, ModelLoadError, PromptError, SourceNotFoundError
from edgevlm.runtime.preflight import TextFacts, check_projector, check_text_model

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
            case float():
                writer.add_float32(key, value)
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
    assert facts.chat_template(None) == "{{ messages }}"
    assert facts.special_token_ids == {"bos_token": 0}  # 99 is beyond the vocabulary
    assert facts.normalizer == "NFC"
    span = check_projector(projector, file)
    assert span.template == "<|vision_start|><|image_pad|><|vision_end|>"


def facts_of(tmp_path: Path, **change: Any) -> TextFacts:
    values = {key: value for key, value in {**TEXT, **change}.items() if value is not None}
    return check_text_model(write(tmp_path / "changed.gguf", "qwen3vl", values))[1]


def test_named_templates(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, **{"tokenizer.chat_template.tool": "t"})
    assert facts.chat_template(None) == facts.chat_template("default") == "{{ messages }}"
    assert facts.chat_template("tool") == "t"
    with pytest.raises(PromptError, match="named 'other'") as caught:
        facts.chat_template("other")
    assert caught.value.hint == "it has: default, tool"
    only = {"tokenizer.chat_template": None, "tokenizer.chat_template.tool": "t"}
    assert facts_of(tmp_path, **only).chat_template(None) == "t"
    with pytest.raises(PromptError, match="named 'default'"):
        facts_of(tmp_path, **only, **{"tokenizer.chat_template.b": "u"}).chat_template(None)
    none = facts_of(tmp_path, **{"tokenizer.chat_template": None})
    assert none.chat_template(None) is None
    with pytest.raises(PromptError, match="named 'tool'"):
        none.chat_template("tool")


def test_sampling_defaults_of_the_file(tmp_path: Path) -> None:
    sampling = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": 1.5,
        "general.sampling.top_p": 7.0,  # means nothing, and is no reason not to load
        "general.sampling.min_p": "a",
    }
    facts = facts_of(tmp_path, **sampling)
    assert facts.sampling == {"temperature": 0.5, "top_k": 20, "repeat_penalty": 1.5}
    assert facts_of(tmp_path).sampling == {}


def test_end_tokens_of_the_file(tmp_path: Path) -> None:
    assert facts_of(tmp_path, **{"edgevlm.tokenizer.end_token_ids": [1, 2]}).end_token_ids == (1, 2)
    with pytest.raises(GGUFError, match="end tokens beyond its 3 tokens"):
        facts_of(tmp_path, **{"edgevlm.tokenizer.end_token_ids": [3]})


@pytest.mark.parametrize("n_deepstack", [2, 7])
def test_deepstack_in_the_last_layer_would_end_the_process(
    tmp_path: Path, n_deepstack: int
) -> None:
    with pytest.raises(GGUFError, match=f"{n_deepstack} deepstack layers in 2 layers"):
        facts_of(tmp_path, **{"qwen3vl.n_deepstack_layers": n_deepstack})


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
        {"split.count": 2},
        # libmtmd asserts the type of each key that it reads.
        {"clip.vision.patch_size": 16.0},
        {"clip.vision.patch_size": [16, 16]},
        {"clip.vision.feed_forward_length": True},
        {"clip.use_gelu": 1},
        {"clip.vision.attention.layer_norm_epsilon": 1},
        {"clip.vision.attention.layer_norm_epsilon": -1.0},
        {"clip.vision.attention.layer_norm_epsilon": float("nan")},
        {"clip.vision.attention.head_count": 3},
        {"clip.vision.block_count": 1 << 30},
        {"clip.vision.spatial_merge_size": 3},
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
        {"qwen3vl.block_count": 1 << 30},
        {"qwen3vl.attention.layer_norm_rms_epsilon": -1.0},
        {"qwen3vl.attention.layer_norm_rms_epsilon": float("inf")},
        {"qwen3vl.rope.dimension_sections": [8, 5, 5, 0]},
        {"qwen3vl.rope.dimension_sections": [0, 0, 0, 4]},
        {"qwen3vl.rope.dimension_sections": [-8, 8, 8, 0]},
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
