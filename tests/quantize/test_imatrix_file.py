from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from edgevlm_convert.encoder import TensorInfo
from numpy.typing import NDArray

from edgevlm.errors import EdgeVLMError, QuantizationError, SourceNotFoundError
from edgevlm.native.ggml import quantize_rows
from edgevlm.quantize.imatrix_file import read_imatrix
from edgevlm.quantize.importance import Importance, check_importance

DENSE, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"
SUMS = {
    DENSE: (np.arange(8, dtype=np.float32)[None] * 3, [3.0]),
    EXPERTS: (np.arange(16, dtype=np.float32).reshape(2, 8), [4.0, 0.0]),
}


def write_imatrix(
    path: Path, sums: Mapping[str, tuple[NDArray[np.float32], list[float]]] = SUMS
) -> Path:
    """Write llama.cpp's GGUF form."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["scenes"])
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (values, counts) in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values)
        writer.add_tensor(f"{name}.counts", np.array(counts, dtype=np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_dat(path: Path, entries: Mapping[str, tuple[int, list[float]]]) -> Path:
    """Write the older form, with the chunk count and the dataset's name behind it."""
    parts = [struct.pack("<i", len(entries))]
    for name, (n_calls, values) in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [
            struct.pack("<ii", n_calls, len(values)),
            np.array(values, dtype=np.float32).tobytes(),
        ]
    path.write_bytes(b"".join([*parts, struct.pack("<ii", 7, 4), b"text"]))
    return path


def test_sums_over_counts_and_ones_where_nothing_was_seen(tmp_path: Path) -> None:
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf"))
    channels = found.importance.channels
    assert channels[DENSE].tolist() == list(range(8))
    assert channels[EXPERTS].tolist() == [index / 4 for index in range(8)] + [1.0] * 8
    assert found.unseen == (f"{EXPERTS}[1]",)
    assert (found.datasets, found.n_chunks) == (("scenes",), 5)


def test_the_older_form_holds_sums_of_means(tmp_path: Path) -> None:
    found = read_imatrix(
        write_dat(tmp_path / "i.dat", {DENSE: (2, [2.0, 4.0]), "output.weight": (0, [5.0])})
    )
    assert found.importance.channels[DENSE].tolist() == [1.0, 2.0]
    assert found.importance.channels["output.weight"].tolist() == [5.0]
    assert found.n_chunks == 7


def test_rows_get_the_channels_of_their_expert() -> None:
    importance = Importance(channels={EXPERTS: np.arange(4, dtype=np.float32)})
    info = TensorInfo(name=EXPERTS, shape=(2, 3, 2), type="F16")
    pieces = [
        (part.start, part.stop, None if channels is None else channels.tolist())
        for part, channels in importance.of_rows(info, 1, 4)
    ]
    assert pieces == [(0, 2, [0.0, 1.0]), (2, 4, [2.0, 3.0])]


BROKEN = {
    "NaN": {DENSE: (np.full((1, 4), np.nan, np.float32), [1.0])},
    "negative": {DENSE: (np.full((1, 4), -1, np.float32), [1.0])},
    "negative count": {DENSE: (np.ones((1, 4), np.float32), [-1.0])},
    "counts that do not divide": {DENSE: (np.ones((1, 4), np.float32), [1.0, 1.0, 1.0])},
}


@pytest.mark.parametrize("sums", BROKEN.values(), ids=BROKEN)
def test_what_no_importance_matrix_holds_is_an_error(
    tmp_path: Path, sums: dict[str, tuple[NDArray[np.float32], list[float]]]
) -> None:
    with pytest.raises(QuantizationError, match="ffn_up") as caught:
        read_imatrix(write_imatrix(tmp_path / "i.gguf", sums))
    assert "i.gguf" in caught.value.message


def test_another_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        read_imatrix(tmp_path / "missing")
    for content in (b"", b"\x01\x00\x00\x00", b"hello, world: no matrix", bytes(100)):
        path = tmp_path / "x"
        path.write_bytes(content)
        with pytest.raises(QuantizationError):
            read_imatrix(path)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_damage_ends_in_an_error_or_a_matrix(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"i.{form}"
    values = np.linspace(0.1, 9, 256, dtype=np.float32)
    rows = np.linspace(-1, 1, 256, dtype=np.float32)[None]
    if form == "gguf":
        write_imatrix(path, {**SUMS, DENSE: (values[None], [3.0])})
    else:
        write_dat(path, {DENSE: (2, values.tolist()), "output.weight": (1, [5.0])})
    n_encoded = 0
    whole, chance = path.read_bytes(), random.Random(5)
    for _ in range(500):
        data = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255])
        path.write_bytes(data)
        try:
            found = read_imatrix(path)
        except EdgeVLMError:
            continue
        for channels in found.importance.channels.values():
            assert np.isfinite(channels).all()
            # The kernel that ends the process when its sums overflow.
            if channels.size == 256:
                quantize_rows(rows, "IQ3_S", channels)
                n_encoded += 1
    assert n_encoded > 100


def test_a_matrix_of_another_model_is_refused() -> None:
    tensors = {DENSE: TensorInfo(name=DENSE, shape=(3, 8), type="F16")}
    wider = Importance(channels={DENSE: np.ones(9, np.float32)})
    with pytest.raises(QuantizationError, match=r"has 9 channels .* the tensor has 8"):
        check_importance(wider, {DENSE: "Q4_0"}, tensors)
    names = [f"blk.{index}.ffn_up.weight" for index in range(5)]
    several = {name: TensorInfo(name=name, shape=(3, 8), type="F16") for name in names}
    wider = Importance(channels={name: np.ones(9, np.float32) for name in names})
    with pytest.raises(QuantizationError, match=r"in 5 tensors.*blk\.0.*blk\.1.*blk\.2.* \.\.\.$"):
        check_importance(wider, dict.fromkeys(names, "Q4_0"), several)
    # A model of the same width with more layers; what the projector has is not asked here.
    deeper = Importance(
        channels={DENSE: np.ones(8, np.float32)}
        | {
            name: np.ones(8, np.float32)
            for name in ("blk.1.ffn_up.weight", "v.blk.7.ffn_up.weight")
        }
    )
    with pytest.raises(
        QuantizationError, match=r"1 tensors that this model lacks: `blk\.1\.ffn_up"
    ):
        check_importance(deeper, {DENSE: "Q4_0"}, tensors)
    tower = {
        "v.blk.0.ffn_up.weight": TensorInfo(name="v.blk.0.ffn_up.weight", shape=(3, 8), type="F16")
    }
    deeper = Importance(
        channels={
            name: np.ones(8, np.float32)
            for name in ("v.blk.0.ffn_up.weight", "v.blk.1.ffn_up.weight")
        }
    )
    with pytest.raises(QuantizationError, match=r"1 tensors .*`v\.blk\.1\.ffn_up"):
        check_importance(deeper, {}, tower)
    other = Importance(channels={"blk.0.other.weight": np.ones(8, np.float32)})
    with pytest.raises(QuantizationError, match=r"names no tensor of this model"):
        check_importance(other, {DENSE: "Q4_0"}, tensors)


def test_tensors_without_channels_are_counted() -> None:
    importance = Importance(channels={DENSE: np.ones(8, np.float32)})
    types = {DENSE: "Q4_0", "blk.0.ffn_down.weight": "Q6_K", "blk.0.ffn_gate.weight": "Q8_0"}
    types |= {"token_embd.weight": "Q6_K", "blk.0.norm.weight": "F32"}
    # 8 bits are encoded without, and nobody collects anything for embeddings.
    assert importance.without(types) == ["blk.0.ffn_down.weight"]


def test_types_that_need_one_are_named() -> None:
    tensors = {
        name: TensorInfo(name=name, shape=(3, 256), type="F16")
        for name in ("a.weight", "b.weight", "output.weight")
    }
    types = {"a.weight": "IQ2_S", "b.weight": "IQ2_S", "output.weight": "IQ2_S"}
    with pytest.raises(QuantizationError, match=r"`a.weight` as IQ2_S .* so do 1 more"):
        check_importance(None, types, tensors)
    partly = Importance(channels={"a.weight": np.ones(256, np.float32)})
    with pytest.raises(QuantizationError, match=r"`b.weight` as IQ2_S needs"):
        check_importance(partly, types, tensors)
    check_importance(None, {"a.weight": "Q2_K"}, tensors)
