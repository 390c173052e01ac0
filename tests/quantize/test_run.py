from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgevlm.errors import EdgeVLMError, GGUFError, QuantizationError, SourceNotFoundError
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import LevelEncoder, mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize
from tests.quantize.quantizing import quantize_file

LEVELS = ("Q4_K_M", "Q5_K_M", "Q8_0")
TOYS: dict[str, dict[str, Any]] = {
    "32 layers, 960 columns, tied": {"n_layers": 32, "n_columns": 960},
    "32 layers, 960 columns, untied": {"n_layers": 32, "n_columns": 960, "is_tied": False},
    "32 layers, 960 columns, ffn 2560": {"n_layers": 32, "n_columns": 960, "n_ffn_columns": 2560},
    "llama, 32 layers, 960 columns": {"architecture": "llama", "n_layers": 32, "n_columns": 960},
    "13 layers, 256 columns, BF16": {"n_layers": 13, "source_type": "BF16"},
    "untied, 512 columns": {"n_columns": 512, "is_tied": False},
    "12 layers, joined qkv": {"n_layers": 12, "has_joined_qkv": True},
    "9 layers, 4 experts": {"architecture": "qwen3moe", "n_layers": 9, "n_experts": 4},
    "9 layers, 8 experts": {"architecture": "qwen3moe", "n_layers": 9, "n_experts": 8},
    "rows that no block divides": {"n_columns": 100},
}

WriteToy = Callable[[Path, Any], None]
TensorBytes = Callable[[Path], dict[str, tuple[str, tuple[int, ...], bytes]]]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", TOYS.values(), ids=TOYS)
def test_types_and_bytes_equal_llama_cpps_own_quantizer(
    tmp_path: Path,
    write_toy: WriteToy,
    toy: Callable[..., Any],
    llama_quantize: Callable[[Path, Path, str], bool],
    tensor_bytes: TensorBytes,
    options: dict[str, Any],
    level: str,
) -> None:
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("source", "ours", "theirs"))
    write_toy(source, toy(**options))

    plan = quantize_file(source, ours, text_encoder(load_profile(level)), n_threads=2)
    assert llama_quantize(source, theirs, level)

    expected = tensor_bytes(theirs)
    actual = tensor_bytes(ours)
    assert {name: entry[:2] for name, entry in actual.items()} == {
        name: entry[:2] for name, entry in expected.items()
    }
    assert actual == expected
    assert plan.n_bytes == ours.stat().st_size == theirs.stat().st_size


def test_metadata_are_copied_and_say_the_level(
    tmp_path: Path,
    write_toy: WriteToy,
    toy: Callable[..., Any],
    llama_quantize: Callable[[Path, Path, str], bool],
) -> None:
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("source", "ours", "theirs"))
    write_toy(source, toy())
    quantize_file(source, ours, text_encoder(load_profile("Q4_K_M")))
    assert llama_quantize(source, theirs, "Q4_K_M")

    before, after = read_gguf(source), read_gguf(ours)
    assert list(after.metadata) == [*before.metadata, "general.quantization_version"]
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    expected = {key: (v.type, v.value) for key, v in read_gguf(theirs).metadata.items()}
    assert {key: (v.type, v.value) for key, v in after.metadata.items()} == expected
    assert after.file_type == "Q4_K_M"


def test_one_thread_and_many_write_the_same_bytes(
    tmp_path: Path, write_toy: WriteToy, toy: Callable[..., Any]
) -> None:
    source = tmp_path / "source.gguf"
    write_toy(source, toy(n_rows=3000, n_layers=1))
    encoder = text_encoder(load_profile("Q4_K_M"))
    for n_threads in (1, 4):
        quantize_file(source, tmp_path / f"{n_threads}.gguf", encoder, n_threads=n_threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()


PROJECTOR = {
    "v.patch_embd.weight": ((64, 3, 16, 16), "F16"),
    "v.patch_embd.bias": ((64,), "F32"),
    "v.position_embd.weight": ((16, 64), "F32"),
    "v.post_ln.weight": ((64,), "F32"),
    "v.blk.0.attn_qkv.weight": ((192, 64), "F16"),
    "v.blk.0.attn_qkv.bias": ((192,), "F32"),
    "v.blk.0.attn_out.weight": ((64, 64), "F16"),
    "v.blk.0.ln1.weight": ((64,), "F32"),
    "v.blk.0.ffn_up.weight": ((108, 64), "F16"),
    "v.blk.0.ffn_down.weight": ((64, 108), "F16"),
    "mm.0.weight": ((64, 64), "F16"),
}
PROJECTOR_MATRICES = (
    "v.blk.0.attn_qkv.weight",
    "v.blk.0.attn_out.weight",
    "v.blk.0.ffn_up.weight",
    "v.blk.0.ffn_down.weight",
    "mm.0.weight",
)


def _write_projector(path: Path, *, scale: float = 1.0) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_uint32("clip.vision.block_count", 1)
    random = np.random.default_rng(4)
    for name, (shape, type_) in PROJECTOR.items():
        values = scale * random.standard_normal(shape)
        writer.add_tensor(name, values.astype(np.float16 if type_ == "F16" else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("level", ["F16", "BF16", "Q8_0"])
def test_a_projector_changes_its_matrices_only(
    tmp_path: Path, tensor_bytes: TensorBytes, level: str
) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    _write_projector(source)
    quantize_file(source, target, mmproj_encoder(level.lower()))

    before, after = tensor_bytes(source), tensor_bytes(target)
    changed = {name for name in before if before[name] != after[name]}
    # Rows of 108 do not divide by 32.
    expected = set(PROJECTOR_MATRICES) - ({"v.blk.0.ffn_down.weight"} if level == "Q8_0" else set())
    assert changed == (set() if level == "F16" else expected)
    assert {after[name][0] for name in changed} <= {level}
    assert read_gguf(target).file_type == level


def test_a_projectors_q8_0_is_ggmls_own(tmp_path: Path, tensor_bytes: TensorBytes) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    _write_projector(source)
    quantize_file(source, target, mmproj_encoder("Q8_0"))
    half = np.frombuffer(tensor_bytes(source)["mm.0.weight"][2], np.float16).reshape(64, 64)
    expected = gguf.quants.quantize(half.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    assert tensor_bytes(target)["mm.0.weight"][2] == expected.tobytes()


def _text() -> LevelEncoder:
    return text_encoder(load_profile("Q4_K_M"))


def test_a_projector_is_no_text_model_and_the_other_way_round(
    tmp_path: Path, write_toy: WriteToy, toy: Callable[..., Any]
) -> None:
    _write_projector(tmp_path / "mmproj.gguf")
    write_toy(tmp_path / "text.gguf", toy())
    with pytest.raises(GGUFError, match="is a projector"):
        plan_quantize(tmp_path / "mmproj.gguf", _text())
    with pytest.raises(GGUFError, match="not a projector"):
        plan_quantize(tmp_path / "text.gguf", mmproj_encoder("Q8_0"))


def test_a_quantized_file_is_refused(
    tmp_path: Path, write_toy: WriteToy, toy: Callable[..., Any]
) -> None:
    write_toy(tmp_path / "source.gguf", toy())
    quantize_file(tmp_path / "source.gguf", tmp_path / "q.gguf", _text())
    with pytest.raises(QuantizationError, match=r"quantized already.*token_embd") as caught:
        plan_quantize(tmp_path / "q.gguf", _text())
    assert "--level" in caught.value.hint


def test_nan_names_its_tensor(tmp_path: Path, write_toy: WriteToy, toy: Callable[..., Any]) -> None:
    source = tmp_path / "source.gguf"
    write_toy(source, toy())
    tensor = next(t for t in read_gguf(source).tensors if t.name == "blk.2.ffn_up.weight")
    data = bytearray(source.read_bytes())
    data[tensor.offset + 40 : tensor.offset + 42] = np.float16(np.nan).tobytes()
    source.write_bytes(data)
    with pytest.raises(QuantizationError, match=r"blk\.2\.ffn_up\.weight"):
        quantize_file(source, tmp_path / "target.gguf", _text())


def _broken(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_what_cannot_be_a_source_is_an_error(
    tmp_path: Path, write_toy: WriteToy, toy: Callable[..., Any]
) -> None:
    source = tmp_path / "source.gguf"
    write_toy(source, toy())
    whole = source.read_bytes()
    sources: dict[Path, type[EdgeVLMError]] = {
        tmp_path / "missing.gguf": SourceNotFoundError,
        tmp_path: GGUFError,
        _broken(tmp_path / "cut.gguf", whole[: len(whole) // 2]): GGUFError,
        _broken(tmp_path / "random.gguf", np.random.default_rng(1).bytes(5000)): GGUFError,
        _broken(tmp_path / "text.gguf", whole.replace(b"toy", b"t\xff\xfe")): GGUFError,
        _broken(tmp_path / "other.gguf", whole.replace(b".block_count", b".block_kount")): (
            QuantizationError
        ),
    }
    for path, error in sources.items():
        with pytest.raises(error) as caught:
            plan_quantize(path, _text())
        assert caught.value.hint


def test_an_unknown_projector_level_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="`Q4_K_M`"):
        mmproj_encoder("Q4_K_M")
