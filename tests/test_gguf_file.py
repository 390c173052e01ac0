from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.errors import GGUFError, SourceNotFoundError
from edgevlm.gguf_file import GGUFFile, read_gguf

_HEADER = "<4sIQQ"


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _key(name: str, type_id: int, value: bytes) -> bytes:
    return _string(name.encode()) + struct.pack("<I", type_id) + value


def _tensor(
    name: str = "a.weight",
    dimensions: tuple[int, ...] = (32, 2),
    type_id: int = 8,
    offset: int = 0,
) -> bytes:
    return (
        _string(name.encode())
        + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        + struct.pack("<IQ", type_id, offset)
    )


def _file(
    *,
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    n_data_bytes: int = 4096,
) -> bytes:
    head = struct.pack(
        _HEADER,
        b"GGUF",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(n_data_bytes)


def _read(tmp_path: Path, data: bytes) -> GGUFFile:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def _write_real(path: Path, *, n_tokens: int = 40) -> None:
    writer = gguf.GGUFWriter(path, "qwen3vl")
    writer.add_name("a name, \u00fcmlaut")
    writer.add_file_type(15)
    writer.add_float32("qwen3vl.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(n_tokens)])
    writer.add_array("tokenizer.ggml.token_type", [1] * n_tokens)
    writer.add_array("tokenizer.ggml.merges", [f"a{i} b{i}" for i in range(2 * n_tokens)])
    writer.add_array("qwen3vl.rope.dimension_sections", [8, 8, 8, 0])
    writer.add_tensor("norm.weight", np.ones(64, np.float32))
    writer.add_tensor("blk.0.attn_v.weight", np.ones((3, 64), np.float16))
    writer.add_tensor(
        "blk.0.ffn_up.weight",
        np.zeros((2, 34), np.uint8),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def real(tmp_path: Path) -> Path:
    path = tmp_path / "real.gguf"
    _write_real(path)
    return path


def test_reads_what_ggufs_own_writer_wrote(real: Path) -> None:
    file = read_gguf(real)

    assert (file.version, file.alignment, file.n_bytes) == (3, 32, real.stat().st_size)
    assert (file.architecture, file.name, file.file_type) == (
        "qwen3vl",
        "a name, \u00fcmlaut",
        "Q4_K_M",
    )
    assert not file.is_projector
    values = {key: (value.type, value.value) for key, value in file.metadata.items()}
    assert values["qwen3vl.rope.freq_base"] == ("FLOAT32", 10000.0)
    assert values["tokenizer.ggml.add_bos_token"] == ("BOOL", False)
    assert values["qwen3vl.rope.dimension_sections"] == ("ARRAY:INT32", [8, 8, 8, 0])
    assert values["tokenizer.ggml.tokens"] == ("ARRAY:STRING", [f"t{i}" for i in range(40)])
    assert file.metadata["tokenizer.ggml.merges"].head(2) == ["a0 b0", "a1 b1"]
    assert file.metadata["tokenizer.ggml.merges"].n_items == 80


def test_tensors_have_numpy_shapes_absolute_offsets_and_true_sizes(real: Path) -> None:
    file = read_gguf(real)

    norm, value, up = file.tensors
    assert (norm.name, norm.shape, norm.type, norm.n_bytes) == ("norm.weight", (64,), "F32", 256)
    assert (value.shape, value.type, value.n_bytes) == ((3, 64), "F16", 384)
    assert (up.shape, up.type, up.n_bytes) == ((2, 32), "Q8_0", 68)
    data = real.read_bytes()
    assert data[value.offset : value.offset + value.n_bytes] == np.ones(192, "<f2").tobytes()
    assert file.n_weights == 64 + 192 + 64
    assert file.bits_per_weight == 8 * (256 + 384 + 68) / 320
    assert {name: c.n_bytes for name, c in file.type_histogram().items()} == {
        "F16": 384,
        "F32": 256,
        "Q8_0": 68,
    }


def test_encoded_values_are_the_files_own_bytes(real: Path) -> None:
    data = real.read_bytes()
    for key, value in read_gguf(real).metadata.items():
        assert data.count(key.encode()) >= 1
        assert bytes(value.encoded) in data
    tokens = read_gguf(real).metadata["qwen3vl.rope.dimension_sections"]
    assert bytes(tokens.encoded) == struct.pack("<IQ4i", 5, 4, 8, 8, 8, 0)


def test_text_that_is_not_utf8_survives(tmp_path: Path) -> None:
    file = _read(tmp_path, _file(keys=(_key("general.name", 8, _string(b"\xff\xfe")),)))
    assert file.name.encode("utf-8", "surrogateescape") == b"\xff\xfe"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "text": (b"hello, I am a text file of more than 24 bytes", "not a GGUF file"),
    "version 1": (_file(version=1), "version 1"),
    "version 4": (_file(version=4), "version 4"),
    "big-endian": (_file(version=0x03000000), "big-endian"),
    "2^60 tensors": (_file(n_tensors=1 << 60), "more than its size allows"),
    "2^60 keys": (_file(n_keys=1 << 60), "more than its size allows"),
    "long key": (_file(keys=(struct.pack("<Q", 1 << 50) + b"x",)), "metadata key of"),
    "empty key": (_file(keys=(_key("", 0, b"\1"),)), "metadata key of 0 bytes"),
    "key not UTF-8": (_file(keys=(_string(b"\xff") + struct.pack("<IB", 0, 1),)), "not UTF-8"),
    "long string": (
        _file(keys=(_key("k", 8, struct.pack("<Q", 1 << 62)),)),
        "truncated",
    ),
    "string of 2^64-1": (
        _file(keys=(_key("k", 8, struct.pack("<Q", (1 << 64) - 1)),)),
        "truncated",
    ),
    "long array": (
        _file(keys=(_key("k", 9, struct.pack("<IQ", 4, 1 << 62)),)),
        "more than its size allows",
    ),
    "nested array": (_file(keys=(_key("k", 9, struct.pack("<IQ", 9, 1)),)), "nested arrays"),
    "value type": (_file(keys=(_key("k", 99, b"\1"),)), "value type 99"),
    "key twice": (_file(keys=(_key("k", 0, b"\1"), _key("k", 0, b"\2"))), "`k` twice"),
    "alignment 24": (
        _file(keys=(_key("general.alignment", 4, struct.pack("<I", 24)),)),
        "power of two",
    ),
    "alignment 0": (
        _file(keys=(_key("general.alignment", 4, struct.pack("<I", 0)),)),
        "power of two",
    ),
    "alignment 2^31": (
        _file(keys=(_key("general.alignment", 4, struct.pack("<I", 1 << 31)),)),
        "up to 1048576",
    ),
    "alignment text": (_file(keys=(_key("general.alignment", 8, _string(b"32")),)), "of type"),
    "5 dimensions": (_file(tensors=(_tensor(dimensions=(32, 1, 1, 1, 1)),)), "5 dimensions"),
    "0 weights": (_file(tensors=(_tensor(dimensions=(32, 0)),)), "impossible shape"),
    "2^80 weights": (_file(tensors=(_tensor(dimensions=(1 << 40, 1 << 40)),)), "impossible shape"),
    "tensor type": (_file(tensors=(_tensor(type_id=31),)), "tensor type 31"),
    "ragged row": (_file(tensors=(_tensor(dimensions=(33, 2)),)), "no multiple"),
    "unaligned": (_file(tensors=(_tensor(offset=8),)), "unaligned"),
    "outside": (_file(tensors=(_tensor(offset=1 << 62),)), "truncated"),
    "cut data": (_file(tensors=(_tensor(),), n_data_bytes=67), "truncated"),
    "tensor twice": (
        _file(tensors=(_tensor(), _tensor(offset=96))),
        "`a.weight` twice",
    ),
    "overlap": (_file(tensors=(_tensor(), _tensor("b.weight", offset=64))), "overlapping"),
    "zero in a name": (_file(tensors=(_tensor("a\0b"),)), "zero byte in the tensor name"),
    "zero in a key": (_file(keys=(_key("a\0b", 0, b"\1"),)), "zero byte in the metadata key"),
    "long name": (_file(tensors=(_tensor("n" * 64),)), "tensor name of 64 bytes"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_an_error_with_a_hint(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(GGUFError, match=message) as caught:
        _read(tmp_path, data)
    assert "file.gguf" in caught.value.message
    assert caught.value.hint


def test_version_2_is_read(real: Path, tmp_path: Path) -> None:
    """Nothing but its number differs."""
    data = real.read_bytes()
    file = _read(tmp_path, data[:4] + struct.pack("<I", 2) + data[8:])
    assert (file.version, file.tensors[0].shape) == (2, (64,))
    assert {t.name for t in file.tensors} == {t.name for t in read_gguf(real).tensors}


def test_names_in_messages_are_escaped(tmp_path: Path) -> None:
    with pytest.raises(GGUFError) as caught:
        _read(tmp_path, _file(tensors=(_tensor("\x1b[2Jevil", type_id=31),)))
    assert caught.value.message.isprintable()


def test_a_folder_or_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="cannot read"):
        read_gguf(tmp_path)
    with pytest.raises(SourceNotFoundError, match="there is no file"):
        read_gguf(tmp_path / "missing.gguf")


def _flip(random_: random.Random, data: bytes, header_bytes: int) -> bytes:
    mutated = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        mutated[random_.randrange(header_bytes)] = random_.choice(
            (0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256))
        )
    return bytes(mutated)


def _truncate(random_: random.Random, data: bytes, _: int) -> bytes:
    return data[: random_.randrange(len(data))]


def _splice(random_: random.Random, data: bytes, header_bytes: int) -> bytes:
    start = random_.randrange(header_bytes)
    return data[:start] + random_.randbytes(random_.randrange(1, 32)) + data[start:]


@pytest.mark.parametrize("mutate", [_flip, _truncate, _splice])
def test_2000_mutated_files_give_a_gguf_error_or_a_file(
    real: Path, tmp_path: Path, mutate: Callable[[random.Random, bytes, int], bytes]
) -> None:
    data = real.read_bytes()
    header_bytes = read_gguf(real).data_offset
    random_ = random.Random(7)
    n_errors = 0
    for _ in range(2000):
        try:
            file = _read(tmp_path, mutate(random_, data, header_bytes))
            for value in file.metadata.values():
                assert isinstance(value.head(3), list)
            assert file.bits_per_weight >= 0
        except GGUFError as error:
            n_errors += bool(error.hint)
    assert n_errors > 200
