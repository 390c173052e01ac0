"""The writer beside gguf-py's own, and its behaviour with an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import Value, array, boolean, f32, i32, string, u32, u64
from edgevlm_convert.writer import OutputTensor, encode_float, plan_gguf, write_gguf
from numpy.typing import NDArray

from edgevlm.progress import Advance, Unit

METADATA = {
    "general.architecture": string("test"),
    "a.u32": u32(1 << 31),
    "a.i32": i32(-5),
    "a.u64": u64(1 << 63),
    "a.f32": f32(0.1),
    "a.bool": boolean(True),
    "a.text": string("Ġ é 中"),
    "a.texts": array("STRING", ["", "x", "中"]),
    "a.ints": array("INT32", [1, -2, 3]),
    "a.floats": array("FLOAT32", [0.5, 1e-6]),
    "a.bools": array("BOOL", [True, False]),
}
SHAPES = {"one": (7,), "two": (5, 33), "three": (2, 3, 8), "four": (2, 3, 4, 5)}


def random_values(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def output(name: str, values: NDArray[np.float32], type: str = "F32") -> OutputTensor:
    rows = values.reshape(-1, values.shape[-1])
    return OutputTensor(
        info=TensorInfo(name=name, shape=values.shape, type=type),
        read=lambda start, stop: rows[start:stop],
    )


def test_bytes_are_gguf_pys(tmp_path: Path) -> None:
    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "test")
    theirs.add_uint32("a.u32", 1 << 31)
    theirs.add_int32("a.i32", -5)
    theirs.add_uint64("a.u64", 1 << 63)
    theirs.add_float32("a.f32", 0.1)
    theirs.add_bool("a.bool", True)
    theirs.add_string("a.text", "Ġ é 中")
    theirs.add_array("a.texts", ["", "x", "中"])
    theirs.add_array("a.ints", [1, -2, 3])
    theirs.add_array("a.floats", [0.5, 1e-6])
    theirs.add_array("a.bools", [True, False])
    for name, shape in SHAPES.items():
        theirs.add_tensor(name, random_values(shape))
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()
    tensors = [output(name, random_values(shape)) for name, shape in SHAPES.items()]
    plan = plan_gguf(metadata=METADATA, tensors=tensors)
    write_gguf(plan, tmp_path / "ours.gguf", n_threads=2)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert plan.n_bytes == (tmp_path / "ours.gguf").stat().st_size


@pytest.mark.parametrize("type", ["F16", "BF16"])
def test_float_types_are_rounded_as_gguf_py_rounds_them(type: str) -> None:
    values = np.concatenate(
        [
            random_values((64, 64)).reshape(-1),
            np.array([0, -0.0, 1e-8, 6e-8, 65504, -65504], np.float32),
        ]
    ).astype(np.float32)
    theirs = gguf.quantize(values, gguf.GGMLQuantizationType[type])
    assert encode_float("x", values, type) == theirs.tobytes()


class Halves:
    """An encoder that stores matrices as tenths in 8 bits."""

    def shapes(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> Mapping[str, tuple[int, ...]]:
        return {}

    def plan(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> tuple[dict[str, str], dict[str, object]]:
        assert metadata["general.architecture"] == METADATA["general.architecture"]
        types = {tensor.name: "Q8_0" for tensor in tensors if len(tensor.shape) == 2}
        return types, {"a.u32": u32(7), "z.new": string("end")}

    def n_bytes(self, shape: tuple[int, ...], type: str, /) -> int:
        assert type == "Q8_0"
        return shape[0] * shape[1]

    def encode(
        self, info: TensorInfo, rows: NDArray[np.float32], type: str, /, *, first_row: int
    ) -> bytes:
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        return (rows * 10).astype(np.int8).tobytes()


def test_an_encoder_chooses_types_and_replaces_keys_in_their_place(tmp_path: Path) -> None:
    tensors = [output(name, random_values(shape)) for name, shape in SHAPES.items()]
    encoder = Halves()
    plan = plan_gguf(metadata=METADATA, tensors=tensors, encoder=encoder)
    assert plan.types == {"one": "F32", "two": "Q8_0", "three": "F32", "four": "F32"}
    assert list(plan.metadata) == [*METADATA, "z.new"]
    assert plan.metadata["a.u32"] == u32(7)
    write_gguf(plan, tmp_path / "x.gguf", encoder=encoder)
    expected = (random_values(SHAPES["two"]) * 10).astype(np.int8).tobytes()
    assert expected in (tmp_path / "x.gguf").read_bytes()


class Grows(Halves):
    """An encoder that stores everything as it is, but larger."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def shapes(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def plan(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> tuple[dict[str, str], dict[str, object]]:
        assert {tensor.name: tensor.shape for tensor in tensors}.items() >= self._shapes.items()
        return {}, {}


def test_what_an_encoder_lets_grow_has_zeros_at_its_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm_convert.writer._SLAB_VALUES", 80)
    encoder = Grows({"one": (9,), "two": (8, 40)})
    tensors = [output(name, random_values(SHAPES[name])) for name in ("one", "two")]
    plan = plan_gguf(metadata=METADATA, tensors=tensors, encoder=encoder)
    write_gguf(plan, tmp_path / "x.gguf", encoder=encoder)
    raw = (tmp_path / "x.gguf").read_bytes()
    assert raw[len(plan.header) :][:36] == np.pad(random_values((7,)), (0, 2)).tobytes()
    assert raw.endswith(np.pad(random_values((5, 33)), ((0, 3), (0, 7))).tobytes())


@pytest.mark.parametrize("shape", [(4, 33), (5, 32), (5, 33, 1)])
def test_a_shape_that_a_tensor_cannot_grow_to_is_a_bug(shape: tuple[int, ...]) -> None:
    tensor = output("two", random_values(SHAPES["two"]))
    with pytest.raises(ValueError, match="cannot grow"):
        plan_gguf(metadata=METADATA, tensors=[tensor], encoder=Grows({"two": shape}))


def test_many_slabs_in_order_whatever_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm_convert.writer._SLAB_VALUES", 64)
    values = random_values((1000, 32))
    plan = plan_gguf(metadata=METADATA, tensors=[output("x", values), output("y", values)])
    for n_threads in (1, 8):
        write_gguf(plan, tmp_path / f"{n_threads}", n_threads=n_threads)
        raw = (tmp_path / f"{n_threads}").read_bytes()
        assert raw[len(plan.header) :] == values.tobytes() * 2


def test_bits_are_copied_when_the_type_stays(tmp_path: Path) -> None:
    def unwanted(start: int, stop: int) -> NDArray[np.float32]:
        raise AssertionError("read as float32")

    raw = bytes(range(48)) * 2
    tensor = OutputTensor(
        info=TensorInfo(name="x", shape=(4, 12), type="BF16"),
        read=unwanted,
        read_raw=lambda start, stop: raw[start * 24 : stop * 24],
    )
    plan = plan_gguf(metadata=METADATA, tensors=[tensor])
    write_gguf(plan, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == plan.header + raw


def test_progress_is_told_every_byte(tmp_path: Path) -> None:
    told: list[Any] = []

    class Recorder:
        @contextmanager
        def task(self, label: str, *, total: int | None = None, unit: Unit = "bytes") -> Any:
            told.append((total, unit))
            advance: Advance = lambda amount, /: told.append(amount)  # noqa: E731
            yield advance

    tensors = [output(name, random_values(shape)) for name, shape in SHAPES.items()]
    plan = plan_gguf(metadata=METADATA, tensors=tensors)
    write_gguf(plan, tmp_path / "x.gguf", progress=Recorder())
    assert told[0] == (plan.n_data_bytes, "bytes")
    assert sum(told[1:]) == plan.n_data_bytes


def test_a_failing_reader_ends_the_writing(tmp_path: Path) -> None:
    def fail(start: int, stop: int) -> NDArray[np.float32]:
        raise RuntimeError("no such rows")

    info = TensorInfo(name="x", shape=(1 << 16, 64), type="F32")
    plan = plan_gguf(metadata=METADATA, tensors=[OutputTensor(info=info, read=fail)])
    with pytest.raises(RuntimeError, match="no such rows"):
        write_gguf(plan, tmp_path / "x.gguf", n_threads=3)


def test_a_value_of_unknown_type_is_a_bug_that_shows() -> None:
    with pytest.raises(KeyError):
        plan_gguf(metadata={"a": Value("UINT7", 1)}, tensors=[])
