"""A quantized file as the source, with `--allow-requantize`: bytes equal llama.cpp's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import QuantizationError
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize, quantized_type
from tests.quantize.quantizing import llama_quantize, quantize_file

# 576 columns: Q4_K_M is a mixture of Q5_0, Q8_0 and Q4_K there.
SOURCES = ("Q8_0", "Q4_K_M", "Q5_1", "IQ4_XS", "Q2_K")
LEVELS = ("Q4_K_M", "Q8_0", "F16", "F32")
TOY: dict[str, Any] = {"n_layers": 8, "n_columns": 576, "n_ffn_columns": 768, "is_tied": False}


@pytest.mark.parametrize("source", SOURCES)
def test_bytes_equal_llama_cpps_own(
    tmp_path: Path,
    write_toy: Callable[[Path, Any], None],
    toy: Callable[..., Any],
    tensor_bytes: Callable[[Path], dict[str, tuple[str, tuple[int, ...], bytes]]],
    source: str,
) -> None:
    full, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("full", "ours", "theirs"))
    quantized = tmp_path / "quantized.gguf"
    write_toy(full, toy(**TOY))
    quantize_file(full, quantized, text_encoder(load_profile(source)))
    for level in LEVELS:
        encoder = text_encoder(load_profile(level))
        quantize_file(quantized, ours, encoder, allow_requantize=True)
        assert llama_quantize(quantized, theirs, level, allow_requantize=True)
        assert tensor_bytes(ours) == tensor_bytes(theirs), level
        before = read_gguf(theirs)
        metadata = {key: value.value for key, value in read_gguf(ours).metadata.items()}
        assert metadata == {key: value.value for key, value in before.metadata.items()}


def test_it_is_asked_for(
    tmp_path: Path, write_toy: Callable[[Path, Any], None], toy: Callable[..., Any]
) -> None:
    full, quantized = tmp_path / "full.gguf", tmp_path / "quantized.gguf"
    write_toy(full, toy())
    encoder = text_encoder(load_profile("Q8_0"))
    quantize_file(full, quantized, encoder)
    assert quantized_type(read_gguf(full)) is None
    assert quantized_type(read_gguf(quantized)) == "Q8_0"
    with pytest.raises(QuantizationError, match=r"quantized already.*Q8_0") as caught:
        plan_quantize(quantized, encoder)
    assert "--allow-requantize" in caught.value.hint
    assert not llama_quantize(quantized, tmp_path / "theirs.gguf", "Q4_K_M")


def test_a_projector_is_requantized_too(tmp_path: Path, shapes_dir: Path) -> None:
    """Every matrix changes from blocks to blocks, nothing else changes."""
    source, target = shapes_dir / "mmproj-shapes-Q8_0.gguf", tmp_path / "target.gguf"
    quantize_file(source, target, mmproj_encoder("Q4_0"), allow_requantize=True)
    full = tmp_path / "full.gguf"
    quantize_file(shapes_dir / "mmproj-shapes-F16.gguf", full, mmproj_encoder("Q4_0"))
    found = [(t.name, t.shape, t.type) for t in read_gguf(target).tensors]
    assert found == [(t.name, t.shape, t.type) for t in read_gguf(full).tensors]
    assert read_gguf(target).file_type == "Q4_0"
