"""Values that no GGUF file may hold: each error names the tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.safetensors import read_header

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.tricks import (
    EMBEDDING,
    WEIGHTS,
)
from tests.synthetic import write_checkpoint

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
