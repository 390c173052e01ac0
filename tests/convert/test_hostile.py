"""Checkpoints that are broken or meant to do harm: each gets its own clear error and a hint."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.safetensors import read_header

from edgevlm.errors import CheckpointError, ConversionError, EdgeVLMError, SourceNotFoundError
from tests.convert.tricks import EditHeader, EditJson, Header, split_safetensors
from tests.synthetic import write_checkpoint, write_json

EMBEDDING = "model.language_model.embed_tokens.weight"
WEIGHTS = "model.safetensors"
Break = Callable[[Path], object]


def error_of(folder: Path) -> EdgeVLMError:
    with pytest.raises(EdgeVLMError) as caught:
        plan_conversion(folder)
    message = caught.value.message + caught.value.hint
    assert caught.value.hint, "an error says what to do next"
    assert len(message) < 2000
    assert "\x1b" not in message, "a checkpoint cannot write to the terminal"
    return caught.value


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
    ("no tokenizer", _remove("tokenizer.json"), "has no tokenizer.json"),
    ("no preprocessor", _remove("preprocessor_config.json"), "no preprocessor_config.json"),
    ("config is no JSON", _write("config.json", b"{oops"), "is not valid JSON"),
    ("config is empty", _write("config.json", b""), "is not valid JSON"),
    ("config is a list", _write("config.json", b"[]"), "holds no JSON object"),
    ("config is binary", _write("config.json", b"\xff\xfe\x00"), "is not UTF-8"),
    ("config holds NaN", _write("config.json", b'{"a": NaN}'), "holds NaN"),
    ("config has a key twice", _write("config.json", b'{"a": 1, "a": 2}'), "gives `a` twice"),
    ("config has a huge number", _write("config.json", b"9" * 5000), "is not valid JSON"),
    ("config is huge", _write("config.json", b" " * 5_000_000), "more than the 4.0 MB allowed"),
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
    ("text_config", "num_hidden_layers", None),
    ("text_config", "num_attention_heads", 0),
    ("text_config", "num_key_value_heads", 0),
    ("text_config", "hidden_size", 10**400),
    ("text_config", "hidden_size", None),
    ("text_config", "vocab_size", None),
    ("text_config", "vocab_size", 10**9),
    ("text_config", "max_position_embeddings", -5),
    ("text_config", "rms_norm_eps", "small"),
    ("text_config", "rms_norm_eps", 0),
    ("text_config", "rope_parameters", 7),
    ("text_config", "rope_parameters", {"rope_type": "yarn", "factor": 4}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 5]}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 6, 5]}),
    ("text_config", "rope_parameters", {"mrope_section": [10, 3, 3], "rope_theta": 1e4}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 5, 5], "mrope_interleaved": False}),
    ("text_config", "rope_parameters", {"mrope_section": [6, 5, 5], "rope_theta": -1}),
    ("text_config", "attention_bias", True),
    ("text_config", "hidden_act", "relu"),
    ("vision_config", "depth", None),
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


@pytest.mark.parametrize("key", ["architectures", "text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}])
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
    quantized = {"quant_method": "fp8"}
    edit_json("config.json", lambda config: config.update(quantization_config=quantized))
    assert "quant_method `fp8`" in error_of(broken).message


# --- the safetensors header -----------------------------------------------------------------------


def _raw(change: Callable[[bytes], bytes]) -> Break:
    def apply(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return apply


def _length(n_bytes: int) -> Break:
    return _raw(lambda raw: struct.pack("<Q", n_bytes) + raw[8:])


def _header_text(change: Callable[[bytes], bytes]) -> Break:
    def apply(raw: bytes) -> bytes:
        n_header = struct.unpack("<Q", raw[:8])[0]
        text = change(raw[8 : 8 + n_header])
        return struct.pack("<Q", len(text)) + text + raw[8 + n_header :]

    return _raw(apply)


def _wide(_: bytes) -> bytes:
    return b'{"a":[' + b"0," * 3_000_000 + b"0]}"


def _twice(text: bytes) -> bytes:
    entry = json.dumps(json.loads(text)[EMBEDDING]).encode()
    return b'{"' + EMBEDDING.encode() + b'": ' + entry + b"," + text[1:]


RAW: list[tuple[str, Break, str]] = [
    ("no bytes", _raw(lambda raw: b""), "is truncated: 0 bytes"),
    ("four bytes", _raw(lambda raw: raw[:4]), "is truncated: 4 bytes"),
    ("half a header", _raw(lambda raw: raw[:500]), "is truncated: its header needs"),
    ("data cut", _raw(lambda raw: raw[:-1]), "data_offsets"),
    ("data cut by half", _raw(lambda raw: raw[: len(raw) // 2]), "data_offsets"),
    ("more data", _raw(lambda raw: raw + b"xx"), "2 bytes that belong to no tensor"),
    ("header beyond the file", _length(90_000_000), "is truncated: its header needs"),
    ("absurd header", _length(1 << 62), "more than the 100.0 MB the format allows"),
    ("empty header", _length(0), "is not valid JSON"),
    ("header is a bomb", _header_text(lambda _: b'{"a":' + b"[" * 900_000), "too deeply"),
    ("header is wide", _header_text(_wide), "JSON values for 0 tensors"),
    ("header is a list", _header_text(lambda _: b"[1]"), "holds no JSON object"),
    ("header is binary", _header_text(lambda _: b"\xff" * 20), "is not UTF-8"),
    ("name twice", _header_text(_twice), f"gives `{EMBEDDING}` twice"),
]


@pytest.mark.parametrize(("change", "expected"), [r[1:] for r in RAW], ids=[r[0] for r in RAW])
def test_safetensors_files(broken: Path, change: Break, expected: str) -> None:
    change(broken)
    error = error_of(broken)
    assert isinstance(error, CheckpointError)
    assert expected in error.message


def _entry(**values: Any) -> Callable[[Header], object]:
    return lambda header: header[EMBEDDING].update(values)


def _shifted(begin: int, end: int) -> Callable[[Header], object]:
    def change(header: Header) -> None:
        offsets = header[EMBEDDING]["data_offsets"]
        header[EMBEDDING]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return change


def _exchanged(header: Header) -> None:
    """Give a later tensor of the same size the place of an earlier one: an overlap and a hole."""
    names = [f"model.language_model.layers.0.self_attn.{letter}_proj.weight" for letter in "kv"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


HEADERS: list[tuple[str, Callable[[Header], object], str]] = [
    ("begins later", _shifted(2, 0), "its data_offsets give"),
    ("ends later", _shifted(0, 2), "its data_offsets give"),
    ("moved", _shifted(2, 2), "leaves a hole before it"),
    ("overlap", _exchanged, "overlaps another"),
    ("negative", _entry(data_offsets=[-2, 40958]), "has data_offsets"),
    ("reversed", _entry(data_offsets=[40960, 0]), "has data_offsets"),
    ("beyond the file", _entry(data_offsets=[1 << 40, (1 << 40) + 40960]), "has data_offsets"),
    ("beyond 64 bits", _entry(data_offsets=[0, 1 << 80]), "has data_offsets"),
    ("three offsets", _entry(data_offsets=[0, 1, 2]), "has data_offsets"),
    ("offsets are words", _entry(data_offsets=["0", "1"]), "has data_offsets"),
    ("no offsets", lambda header: header[EMBEDDING].pop("data_offsets"), "has data_offsets"),
    ("shape says less", _entry(shape=[319, 64]), "needs 40832 bytes"),
    ("shape is negative", _entry(shape=[-320, -64]), "has no valid shape"),
    ("shape is a number", _entry(shape=5), "has no valid shape"),
    ("shape is true", _entry(shape=[320, True]), "has no valid shape"),
    ("shape has many dimensions", _entry(shape=[1] * 30), "has no valid shape"),
    ("shape overflows", _entry(shape=[1 << 40, 1 << 40]), "needs"),
    ("unknown dtype", _entry(dtype="F17"), "has dtype `F17`"),
    ("dtype is a number", _entry(dtype=3), "has dtype `3`"),
    ("entry is a number", lambda header: header.update({EMBEDDING: 7}), "has dtype"),
    (
        "a name that writes to the terminal",
        lambda header: header.update({"\x1b[31mred\n": header.pop(EMBEDDING)}),
        "\\x1b[31mred\\n",
    ),
    ("a very long name", lambda header: header.update({"a" * 90_000: header.pop(EMBEDDING)}), "aa"),
]


@pytest.mark.parametrize(
    ("change", "expected"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS]
)
def test_safetensors_headers(
    broken: Path, edit_header: EditHeader, change: Callable[[Header], object], expected: str
) -> None:
    edit_header(change)
    assert expected in error_of(broken).message


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("F8_E4M3", [320, 128]), ("I8", [320, 128]), ("I16", [320, 64]), ("F64", [320, 16])],
)
def test_dtypes_that_are_not_float(
    broken: Path, edit_header: EditHeader, edit_json: EditJson, dtype: str, shape: list[int]
) -> None:
    edit_header(_entry(dtype=dtype, shape=shape))
    error = error_of(broken)
    assert isinstance(error, ConversionError)
    assert EMBEDDING in error.message


def test_a_float64_tensor_of_the_right_shape(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dtype="F32")
    header, data = split_safetensors(tmp_path / WEIGHTS)
    # The last tensor, so that no other one moves.
    name = max((n for n in header if n[0] != "_"), key=lambda n: header[n]["data_offsets"][1])
    begin, end = header[name]["data_offsets"]
    header[name] |= {"dtype": "F64", "data_offsets": [begin, 2 * end - begin]}
    text = json.dumps(header).encode()
    raw = struct.pack("<Q", len(text)) + text + data + data[begin:end]
    (tmp_path / WEIGHTS).write_bytes(raw)
    assert f"tensor `{name}` has dtype F64" in error_of(tmp_path).message


# --- shards and index ---------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "sharded", shards=3)
    return tmp_path / "sharded"


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "..",
        "",
        "sub/model.safetensors",
        "C:\\model.safetensors",
        "..\\model.safetensors",
        "model.bin",
        "a\0.safetensors",
    ],
)
def test_an_index_that_points_elsewhere(sharded: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][EMBEDDING] = name
    write_json(sharded / INDEX, index)
    assert "is not a safetensors file of the folder" in error_of(sharded).message


@pytest.mark.parametrize("shard", SHARDS)
def test_a_missing_shard(sharded: Path, shard: str) -> None:
    (sharded / shard).unlink()
    assert f"shard `{shard}` is missing" in error_of(sharded).message


def _index(change: Callable[[Header], object]) -> Break:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        write_json(folder / INDEX, index)

    return apply


def _tensor_in_two_shards(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())


INDEXES: list[tuple[str, Break, str]] = [
    ("no map", _index(lambda i: i.pop("weight_map")), "has no valid weight_map"),
    ("map is a list", _index(lambda i: i.update(weight_map=[])), "has no valid weight_map"),
    ("map of numbers", _index(lambda i: i.update(weight_map={"a": 1})), "no valid weight_map"),
    ("empty map", _index(lambda i: i.update(weight_map={})), "names no shard"),
    (
        "a tensor in another shard",
        _index(lambda i: i["weight_map"].update({EMBEDDING: SHARDS[2]})),
        f"promises tensor `{EMBEDDING}`",
    ),
    (
        "a tensor that is nowhere",
        _index(lambda i: i["weight_map"].update({"x": SHARDS[2]})),
        "promises tensor `x`",
    ),
    (
        "a tensor that it forgets",
        _index(lambda i: i["weight_map"].pop(EMBEDDING)),
        f"tensor `{EMBEDDING}` in `{SHARDS[0]}` is not in",
    ),
    ("a tensor in two shards", _tensor_in_two_shards, "and in"),
]


@pytest.mark.parametrize(
    ("change", "expected"), [i[1:] for i in INDEXES], ids=[i[0] for i in INDEXES]
)
def test_indexes(sharded: Path, change: Break, expected: str) -> None:
    change(sharded)
    assert expected in error_of(sharded).message


def test_links_of_the_hub_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    sharded.rename(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert plan_conversion(snapshot).ledger.n_source_tensors == 82


def test_a_broken_link(sharded: Path) -> None:
    (sharded / SHARDS[0]).unlink()
    (sharded / SHARDS[0]).symlink_to("nowhere")
    assert "is missing" in error_of(sharded).message


# --- the values ---------------------------------------------------------------------------------


def poison(folder: Path, name: str, position: int, value: bytes) -> None:
    """Overwrite one element of a tensor in the file's own type."""
    path = folder / WEIGHTS
    tensor = next(tensor for tensor in read_header(path) if tensor.name == name)
    raw = bytearray(path.read_bytes())
    start = tensor.offset + position * len(value)
    raw[start : start + len(value)] = value
    path.write_bytes(bytes(raw))


def convert(folder: Path, out: Path, **options: Any) -> None:
    plan = plan_conversion(folder, **options)
    convert_checkpoint(plan, text_path=out / "t.gguf", mmproj_path=out / "m.gguf")


NAN = {"BF16": b"\xc0\x7f", "F16": b"\x00\x7e", "F32": b"\x00\x00\xc0\x7f"}
INFINITE = {"BF16": b"\x80\xff", "F16": b"\x00\xfc", "F32": b"\x00\x00\x80\xff"}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("outtype", ["auto", "f32", "bf16"])
@pytest.mark.parametrize(
    "name",
    [EMBEDDING, "model.visual.patch_embed.proj.weight", "model.visual.blocks.1.norm1.bias"],
)
def test_nan_and_inf_name_the_tensor(tmp_path: Path, dtype: str, outtype: str, name: str) -> None:
    for number, (word, value) in enumerate((("nan", NAN[dtype]), ("-inf", INFINITE[dtype]))):
        folder = tmp_path / f"{number}"
        write_checkpoint(folder, dtype=dtype)
        poison(folder, name, 17, value)
        with pytest.raises(ConversionError, match=f"`{name}` holds {word} at element 17"):
            convert(folder, tmp_path, outtype=outtype)


@pytest.mark.parametrize("name", [EMBEDDING, "model.visual.patch_embed.proj.weight"])
def test_overflow_of_f16_names_the_tensor_and_the_way_out(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, dtype="BF16")
    # 65536 in BF16: the first power of two that F16 lacks.
    poison(folder, name, 3, b"\x80\x47")
    with pytest.raises(ConversionError) as caught:
        convert(folder, tmp_path, outtype="f16")
    assert "65536" in caught.value.message
    assert "bf16" in caught.value.hint
    convert(folder, tmp_path, outtype="auto")


def test_overflow_of_bf16(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, dtype="F32")
    poison(folder, EMBEDDING, 3, np.float32(3.4028235e38).tobytes())
    with pytest.raises(ConversionError, match="beyond what BF16 can hold"):
        convert(folder, tmp_path, outtype="bf16")
    convert(folder, tmp_path, outtype="f32")


def test_a_shard_that_shrinks_between_plan_and_writing(broken: Path, tmp_path: Path) -> None:
    plan = plan_conversion(broken)
    path = broken / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="ends early"):
        convert_checkpoint(plan, text_path=tmp_path / "t", mmproj_path=tmp_path / "m")
