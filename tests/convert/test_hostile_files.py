"""Safetensors files and indexes that are broken or meant to do harm."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import encode_float

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.tricks import (
    EMBEDDING,
    WEIGHTS,
    Break,
    EditHeader,
    EditJson,
    Header,
    error_of,
    split_safetensors,
)
from tests.synthetic import encode, write_checkpoint, write_json, write_safetensors

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
    [("F8_E4M3", [320, 128]), ("I8", [320, 128]), ("I16", [320, 64])],
)
def test_dtypes_that_are_not_float(
    broken: Path, edit_header: EditHeader, edit_json: EditJson, dtype: str, shape: list[int]
) -> None:
    edit_header(_entry(dtype=dtype, shape=shape))
    error = error_of(broken)
    assert isinstance(error, ConversionError)
    assert EMBEDDING in error.message


def _stored_as(folder: Path, dtype: str, raw: bytes) -> None:
    """Store the embedding's values in another dtype, whatever their size."""
    header, data = split_safetensors(folder / WEIGHTS)
    header.pop("__metadata__")
    tensors = {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    tensors[EMBEDDING] = (dtype, header[EMBEDDING]["shape"], raw)
    write_safetensors(folder / WEIGHTS, tensors)


@pytest.mark.parametrize(
    ("dtype", "n_bytes"), [("I64", 8), ("I32", 4), ("U8", 1), ("BOOL", 1), ("F8_E5M2", 1)]
)
def test_a_tensor_of_the_right_shape_that_holds_no_weights(
    broken: Path, dtype: str, n_bytes: int
) -> None:
    _stored_as(broken, dtype, bytes(320 * 64 * n_bytes))
    error = error_of(broken)
    assert isinstance(error, ConversionError)
    assert f"tensor `{EMBEDDING}` has dtype {dtype}, only" in error.message


@pytest.mark.parametrize("outtype", ["f32", "bf16"])
def test_float64_is_rounded_to_float32_and_from_there(
    broken: Path, outtype: Literal["f32", "bf16"]
) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((320, 64))
    # Just above the middle of two BF16 values, by less than float32 holds: rounded twice, down.
    values[0, 0] = 1 + 2**-8 + 2**-40
    _stored_as(broken, "F64", values.astype("<f8").tobytes())
    tensors = plan_conversion(broken, outtype=outtype).text.tensors
    tensor = next(one for one in tensors if one.info.name == "token_embd.weight")
    rows = np.concatenate([tensor.read(start, start + 64) for start in range(0, 320, 64)])
    np.testing.assert_array_equal(rows, values.astype(np.float32))
    written = encode_float(tensor.info.name, rows, tensor.info.type)
    assert written == encode(values.astype(np.float32), outtype.upper())
    if outtype == "bf16":
        assert written[:2] == encode(np.ones(1, dtype=np.float32), "BF16")


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


@pytest.fixture
def long_shard_name(sharded: Path) -> Path:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][EMBEDDING] = "a" * 5000 + ".safetensors"
    write_json(sharded / INDEX, index)
    return sharded


def test_a_shard_name_too_long_for_the_system(long_shard_name: Path) -> None:
    assert error_of(long_shard_name)


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
