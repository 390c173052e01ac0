"""Which files of a repository are needed."""

from __future__ import annotations

import json

import pytest

from edgevlm.errors import CheckpointError, HubError, SourceNotFoundError
from edgevlm.hub.choose import (
    check_checkpoint,
    choose_gguf,
    level_of,
    side_files,
    text_ggufs,
    weight_files,
)
from edgevlm.hub.file import HubFile


def files(*names: str, n_bytes: int = 1) -> dict[str, HubFile]:
    return {name: HubFile(name=name, n_bytes=n_bytes, etag="0" * 40) for name in names}


def test_config_tokenizer_and_templates_and_nothing_that_runs() -> None:
    wanted = {
        *("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"),
        *("model.safetensors.index.json", "additional_chat_templates/tool_use.jinja"),
    }
    others = {
        *("pytorch_model.bin", "modeling_x.py", "README.md", "training_args.bin", "x.pt"),
        *("onnx/config.json", "../evil.json", "/etc/evil.json", "a\\..\\evil.json", ".hidden.json"),
        *("..json", "additional_chat_templates/../../x.jinja", "\n.json", "x/../y.json"),
    }
    chosen = side_files(files(*wanted, *others))
    assert {file.name for file in chosen} == wanted


def test_a_side_file_of_absurd_size_is_left_out() -> None:
    assert not side_files(files("notes.json", n_bytes=500 * 10**9))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("config.json", "pytorch_model.bin"), "pickle"),
        (("config.json", "adapter_config.json", "adapter_model.safetensors"), "adapter"),
        (("model-Q4_K_M.gguf",), "need no conversion"),
        (("model.safetensors",), "config.json"),
        (("config.json", "README.md"), "model.safetensors"),
        ((), "config.json"),
    ],
)
def test_no_checkpoint(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        check_checkpoint("org/name", names)
    assert caught.value.hint


def test_shards_are_those_that_the_index_names() -> None:
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}
    there = files("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors")
    chosen = weight_files("org/name", there, json.dumps(index).encode())
    assert [file.name for file in chosen] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[" * 100_000,
        b"[]",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": ["x"]}}',
        b'{"weight_map": {"a": "../model.safetensors"}}',
        b'{"weight_map": {"a": "model.bin"}}',
        b'{"weight_map": {"a": "gone.safetensors"}}',
    ],
)
def test_a_broken_index(index: bytes) -> None:
    with pytest.raises(CheckpointError):
        weight_files("org/name", files("model.safetensors"), index)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("SmolVLM2-500M-Q8_0.gguf", "Q8_0"),
        ("model.q4_k_m.gguf", "Q4_K_M"),
        ("X-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("X-IQ4_XS.gguf", "IQ4_XS"),
        ("BF16/X-BF16-00001-of-00002.gguf", "BF16"),
        ("mmproj-F16.gguf", "F16"),
        ("model.gguf", None),
    ],
)
def test_level_of_a_file_name(name: str, level: str | None) -> None:
    assert level_of(name) == level


GGUFS = (
    *("x-Q4_K_M.gguf", "x-Q8_0.gguf", "x-F16.gguf", "x-imatrix.gguf", "README.md"),
    *("mmproj-x-F16.gguf", "mmproj-x-Q8_0.gguf", "BF16/x-BF16-00001-of-00002.gguf"),
)


def test_text_models_are_not_projectors() -> None:
    assert text_ggufs((*GGUFS, "../evil.gguf", "a/../evil.gguf")) == [
        *("BF16/x-BF16-00001-of-00002.gguf", "x-F16.gguf", "x-Q4_K_M.gguf", "x-Q8_0.gguf"),
    ]


@pytest.mark.parametrize(
    ("levels", "text", "mmproj"),
    [
        (("q8_0",), "x-Q8_0.gguf", "mmproj-x-Q8_0.gguf"),
        (("Q4_K_M",), "x-Q4_K_M.gguf", "mmproj-x-Q8_0.gguf"),
        (("F32", "F16"), "x-F16.gguf", "mmproj-x-F16.gguf"),
    ],
)
def test_a_level_and_its_projector(levels: tuple[str, ...], text: str, mmproj: str) -> None:
    chosen = choose_gguf("org/name", files(*GGUFS), levels=levels)
    assert [file.name for file in chosen.text] == [text]
    assert chosen.mmproj is not None
    assert chosen.mmproj.name == mmproj


def test_any_level_where_none_was_asked() -> None:
    chosen = choose_gguf("org/name", files("b.gguf", "a.gguf"), levels=("Q4_K_M",), or_any=True)
    assert (chosen.text[0].name, chosen.level, chosen.mmproj) == ("a.gguf", None, None)


def test_a_level_that_is_not_there() -> None:
    with pytest.raises(SourceNotFoundError, match=r"Q5_K_M.*Q4_K_M, Q8_0"):
        choose_gguf("org/name", files(*GGUFS), levels=("Q5_K_M",))


def test_a_model_in_parts_and_two_models() -> None:
    with pytest.raises(HubError, match=r"and not `BF16/x-BF16-00002-of-00002.gguf`"):
        choose_gguf("org/name", files(*GGUFS), levels=("BF16",))
    parts = [f"BF16/x-BF16-0000{number}-of-00002.gguf" for number in (1, 2)]
    chosen = choose_gguf("org/name", files(parts[1], *GGUFS), levels=("BF16",))
    assert [file.name for file in chosen.text] == parts
    assert chosen.mmproj is not None
    # A name that claims a hundred thousand files, and parts that are none.
    for name in ("x-Q8_0-00001-of-99999.gguf", "x-Q8_0-00000-of-00001.gguf"):
        with pytest.raises(HubError, match="and not"):
            choose_gguf("org/name", files(name), levels=("Q8_0",))
    with pytest.raises(HubError, match="several"):
        choose_gguf("org/name", files("a-Q8_0.gguf", "b-Q8_0.gguf"), levels=("Q8_0",))
