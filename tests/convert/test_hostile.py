"""Checkpoints that are broken or meant to do harm: each gets its own clear error and a hint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import plan_conversion

from edgevlm.errors import CheckpointError, SourceNotFoundError
from tests.convert.tricks import EMBEDDING, WEIGHTS, Break, EditHeader, EditJson, error_of

# --- the folder ---------------------------------------------------------------------------------


def test_a_missing_path(tmp_path: Path) -> None:
    assert isinstance(error_of(tmp_path / "nowhere"), SourceNotFoundError)


def test_a_file_and_a_gguf_file(tmp_path: Path) -> None:
    for name, expected in (("a.txt", "is a file"), ("a.gguf", "is a GGUF file")):
        (tmp_path / name).write_bytes(b"GGUF")
        assert expected in error_of(tmp_path / name).message


def _remove(*names: str) -> Break:
    return lambda folder: [(folder / name).unlink() for name in names]


def _pickles(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _shard_without_index(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")


def _fifo(name: str) -> Break:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _write(name: str, raw: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(raw)


def _bomb(name: str) -> Break:
    return _write(name, b'{"a":' + b"[" * 200_000)


FOLDERS: list[tuple[str, Break, str]] = [
    ("no config", _remove("config.json"), "has no config.json"),
    ("no weights", _remove(WEIGHTS), "has no *.safetensors weights"),
    ("only pickles", _pickles, "pickle weights (`pytorch_model.bin`)"),
    ("shard without index", _shard_without_index, "neither model.safetensors nor"),
    ("weights are a pipe", _fifo(WEIGHTS), "is not a regular file"),
    ("config is a pipe", _fifo("config.json"), "is not a regular file"),
    ("no tokenizer", _remove("tokenizer.json"), "neither tokenizer.json nor"),
    ("no preprocessor", _remove("preprocessor_config.json"), "no preprocessor_config.json"),
    ("config is no JSON", _write("config.json", b"{oops"), "is not valid JSON"),
    ("config is empty", _write("config.json", b""), "is not valid JSON"),
    ("config is a list", _write("config.json", b"[]"), "holds no JSON object"),
    ("config is binary", _write("config.json", b"\xff\xfe\x00"), "is not UTF-8"),
    ("config holds NaN", _write("config.json", b'{"a": NaN}'), "holds NaN"),
    ("config has a key twice", _write("config.json", b'{"a": 1, "a": 2}'), "gives `a` twice"),
    ("config has a huge number", _write("config.json", b"9" * 5000), "is not valid JSON"),
    ("config is huge", _write("config.json", b" " * 5_000_000), "more than the 4.0 MB allowed"),
    ("config holds half a character", _write("config.json", b'{"a": "\\ud83d"}'), "half a char"),
    ("config ends with one", _write("config.json", b'{"a": "\\ud83d\\n"}'), "half a char"),
    ("config is a bomb", _bomb("config.json"), "is nested too deeply"),
    ("tokenizer is a bomb", _bomb("tokenizer.json"), "is nested too deeply"),
    ("tokenizer is cut", _write("tokenizer.json", b'{"model": {'), "is not valid JSON"),
    ("settings are binary", _write("tokenizer_config.json", b"\xff"), "is not UTF-8"),
    ("template is binary", _write("chat_template.jinja", b"\xff"), "is not UTF-8"),
    ("sampling is a word", _write("generation_config.json", b'{"top_k": "a"}'), "`top_k` is 'a'"),
]


@pytest.mark.parametrize(
    ("change", "expected"), [f[1:] for f in FOLDERS], ids=[f[0] for f in FOLDERS]
)
def test_folders(broken: Path, change: Break, expected: str) -> None:
    change(broken)
    assert expected in error_of(broken).message


def test_an_unreadable_file(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom no permission stops.
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edgevlm_convert.safetensors.os.open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        plan_conversion(broken)


# --- the config ---------------------------------------------------------------------------------

CONFIGS: list[tuple[str, str, Any]] = [
    ("text_config", "num_hidden_layers", 10**9),
    ("text_config", "num_hidden_layers", 0),
    ("text_config", "num_hidden_layers", -1),
    ("text_config", "num_hidden_layers", True),
    ("text_config", "num_hidden_layers", "2"),
    ("text_config", "num_hidden_layers", 2.0),
    ("text_config", "num_hidden_layers", [2]),
    ("text_config", "num_attention_heads", 0),
    ("text_config", "num_key_value_heads", 0),
    ("text_config", "hidden_size", 10**400),
    ("text_config", "vocab_size", 10**9),
    ("text_config", "max_position_embeddings", -5),
    ("text_config", "rms_norm_eps", "small"),
    ("text_config", "rms_norm_eps", 0),
    ("text_config", "rms_norm_eps", 10**400),
    ("text_config", "rope_parameters", 7),
    ("text_config", "rope_parameters", {"rope_type": "yarn", "factor": 4}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 5]}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 6, 5]}),
    ("text_config", "rope_parameters", {"mrope_section": [10, 3, 3], "rope_theta": 1e4}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 5, 5], "mrope_interleaved": False}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 5, 5], "rope_theta": -1}),
    ("text_config", "attention_bias", True),
    ("text_config", "hidden_act", "relu"),
    ("vision_config", "depth", 0),
    ("vision_config", "depth", 10**9),
    ("vision_config", "hidden_act", "quick_gelu"),
    ("vision_config", "patch_size", [8, 8]),
    ("vision_config", "deepstack_visual_indexes", 3),
    ("vision_config", "deepstack_visual_indexes", [True]),
    ("vision_config", "deepstack_visual_indexes", list(range(2000))),
    ("vision_config", "deepstack_visual_indexes", [-1]),
    ("vision_config", "rope_parameters", {"rope_theta": 500.0}),
]


@pytest.mark.parametrize(("section", "key", "value"), CONFIGS)
def test_config_values(
    broken: Path, edit_json: EditJson, section: str, key: str, value: Any
) -> None:
    edit_json("config.json", lambda config: config[section].update({key: value}))
    error = error_of(broken)
    assert isinstance(error, CheckpointError)
    assert key in error.message or "mrope" in error.message or "rope" in error.message


LEFT_OUT = [
    ("text_config", "num_hidden_layers"),
    ("text_config", "intermediate_size"),
    ("text_config", "vocab_size"),
    ("vision_config", "depth"),
    ("vision_config", "intermediate_size"),
]


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize(("section", "key"), LEFT_OUT)
def test_a_size_left_out_is_the_default_of_its_class(
    broken: Path, edit_json: EditJson, section: str, key: str, null: bool
) -> None:
    def change(config: dict[str, Any]) -> None:
        config[section].pop(key)
        if null:
            config[section][key] = None

    edit_json("config.json", change)
    # transformers reads it so too; the shapes then tell that it is of another model.
    assert "tensor `" in error_of(broken).message


def test_an_empty_vision_config_is_one_of_defaults(broken: Path, edit_json: EditJson) -> None:
    edit_json("config.json", lambda config: config.update(vision_config={}))
    # The class has 27 layers, this checkpoint 3.
    assert "tensor `model.visual.blocks." in error_of(broken).message


SECTIONS = ("architectures", "text_config", "vision_config")
VALUES: tuple[object, ...] = (None, 3, "x", [], {})


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in SECTIONS for value in VALUES if (key, value) != ("vision_config", {})],
)
def test_config_sections(broken: Path, edit_json: EditJson, key: str, value: Any) -> None:
    edit_json("config.json", lambda config: config.update({key: value}))
    assert isinstance(error_of(broken), CheckpointError)


@pytest.mark.parametrize("value", [[], [0.5], [0.5, 0.5, "a"], [0.5, 0.5, True], None, "mean"])
@pytest.mark.parametrize("key", ["image_mean", "image_std"])
def test_preprocessor_values(broken: Path, edit_json: EditJson, key: str, value: Any) -> None:
    edit_json("preprocessor_config.json", lambda config: config.update({key: value}))
    assert f"preprocessor_config.json: `{key}`" in error_of(broken).message


def test_zero_deviation_and_another_scale(broken: Path, edit_json: EditJson) -> None:
    edit_json("preprocessor_config.json", lambda c: c.update(image_std=[0.5, 0.0, 0.5]))
    assert "image_std" in error_of(broken).message
    edit_json("preprocessor_config.json", lambda c: c.update(image_std=[1] * 3, rescale_factor=1))
    assert "rescale_factor" in error_of(broken).message


def test_a_quantized_checkpoint(broken: Path, edit_json: EditJson) -> None:
    quantized = {"quant_method": "gptq"}
    edit_json("config.json", lambda config: config.update(quantization_config=quantized))
    assert "quant_method `gptq`" in error_of(broken).message


def test_a_tensor_name_that_is_no_text(broken: Path, edit_header: EditHeader) -> None:
    edit_header(lambda header: header.update({"\ud800": header.pop(EMBEDDING)}))
    assert "half a character" in error_of(broken).message


def test_whole_characters_as_escapes(broken: Path, edit_json: EditJson) -> None:
    # json.dumps writes a smiley as two escapes; a backslash before `ud83d` makes it plain text.
    edit_json(
        "tokenizer_config.json", lambda c: c.update(note="\U0001f600\\ud83d", more="\U0001f600")
    )
    assert plan_conversion(broken)


def test_a_folder_whose_name_is_no_text(broken: Path) -> None:
    folder = broken.rename(broken.with_name("caf\udce9"))
    assert plan_conversion(folder).name == "caf?"


def test_a_path_too_long_for_the_system(tmp_path: Path) -> None:
    assert error_of(tmp_path / ("a" * 300))
