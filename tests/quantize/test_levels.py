"""Every level that carries a name of llama.cpp's, beside its own quantizer: types and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf

from edgevlm.errors import QuantizationError
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.importance import Importance
from edgevlm.quantize.profile_file import load_profile, with_tensor_types
from tests.quantize.quantizing import llama_quantize, quantize_file
from tests.quantize.test_profile import FIELD_LEVELS

TOYS: dict[str, dict[str, Any]] = {
    "576 columns, GQA 1": {"n_columns": 576, "n_kv_heads": 8},
    "896 columns, untied, GQA 4": {"n_columns": 896, "is_tied": False, "n_kv_heads": 2},
    "960 columns, ffn 2560, GQA 8": {"n_columns": 960, "n_ffn_columns": 2560, "n_kv_heads": 1},
    "1024 columns, GQA 1": {"n_columns": 1024, "n_kv_heads": 8},
    "1024 columns, untied, GQA 8": {"n_columns": 1024, "is_tied": False, "n_kv_heads": 1},
    "1152 columns, BF16, GQA 4": {"n_columns": 1152, "source_type": "BF16"},
    "512 columns, untied, GQA 4": {"n_columns": 512, "is_tied": False},
    "512 columns, joined qkv, GQA 1": {"n_columns": 512, "has_joined_qkv": True, "n_kv_heads": 8},
    "4 experts, GQA 1": {"n_columns": 512, "n_experts": 4, "n_kv_heads": 8},
    "8 experts, shared one": {"n_columns": 512, "n_experts": 8, "has_shared_expert": True},
    "4 experts, 576 columns": {"n_columns": 576, "n_experts": 4, "has_shared_expert": True},
    "rows that no block divides": {"n_columns": 100},
}
# An importance matrix changes types by level, experts, rows and GQA: these have them all.
WITH_IMATRIX = (
    "576 columns, GQA 1",
    "1024 columns, untied, GQA 8",
    "8 experts, shared one",
    "4 experts, 576 columns",
)
# Their kernels search tables: five times as long as others, IQ2_M thirty times.
SLOW = tuple(level for level in FIELD_LEVELS if level.startswith("IQ"))
QUICK = tuple(level for level in FIELD_LEVELS if level not in SLOW)
GOLDENS = ("qwen3_5", "qwen3_vl_moe", "lfm2_vl")
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, golden: Callable[[str], Path], shapes_checkpoint: Path
) -> Mapping[str, Path]:
    """16-bit text models of families whose tensors or counts are out of the ordinary."""
    folder = tmp_path_factory.mktemp("sources")
    checkpoints = {"shapes": shapes_checkpoint} | {name: golden(name) for name in GOLDENS}
    paths = {name: folder / f"{name}.gguf" for name in checkpoints}
    for name, checkpoint in checkpoints.items():
        write_gguf(plan_conversion(checkpoint, outtype="f16").text, paths[name])
    return paths


def importance_of(path: Path) -> Importance:
    """Return an importance matrix for every matrix but the embedding, uneven over channels."""
    random = np.random.default_rng(7)
    channels: dict[str, Any] = {}
    for tensor in read_gguf(path).tensors:
        if len(tensor.shape) > 1 and tensor.name != "token_embd.weight":
            n_matrices = tensor.shape[-3] if len(tensor.shape) > 2 else 1
            values = random.gamma(0.5, size=n_matrices * tensor.shape[-1])
            channels[tensor.name] = values.astype(np.float32)
    return Importance(channels=channels)


def check_levels(
    folder: Path,
    source: Path,
    tensor_bytes: Callable[[Path], Stored],
    importance: Importance | None,
    levels: tuple[str, ...] = FIELD_LEVELS,
) -> None:
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    for level in levels:
        encoder = text_encoder(load_profile(level), importance=importance)
        if not llama_quantize(source, theirs, level, importance=importance):
            with pytest.raises(QuantizationError, match="needs an importance matrix"):
                quantize_file(source, ours, encoder)
            continue
        quantize_file(source, ours, encoder)
        actual, expected = tensor_bytes(ours), tensor_bytes(theirs)
        types = {name: (level, entry[0]) for name, entry in actual.items()}
        assert types == {name: (level, entry[0]) for name, entry in expected.items()}
        assert actual == expected, level


@pytest.mark.parametrize("options", TOYS.values(), ids=TOYS)
def test_every_level_is_llama_cpps(
    tmp_path: Path,
    write_toy: Callable[[Path, Any], None],
    toy: Callable[..., Any],
    tensor_bytes: Callable[[Path], Stored],
    options: dict[str, Any],
) -> None:
    source, small = tmp_path / "source.gguf", tmp_path / "small.gguf"
    write_toy(source, toy(n_layers=32, **architecture(options), **options))
    check_levels(tmp_path, source, tensor_bytes, None, QUICK)
    write_toy(small, toy(n_layers=32, n_rows=2, **architecture(options), **options))
    check_levels(tmp_path, small, tensor_bytes, None, SLOW)


@pytest.mark.parametrize("name", WITH_IMATRIX)
def test_every_level_with_an_imatrix_is_llama_cpps(
    tmp_path: Path,
    write_toy: Callable[[Path, Any], None],
    toy: Callable[..., Any],
    tensor_bytes: Callable[[Path], Stored],
    name: str,
) -> None:
    source, small, options = tmp_path / "source.gguf", tmp_path / "small.gguf", TOYS[name]
    write_toy(source, toy(n_layers=32, **architecture(options), **options))
    check_levels(tmp_path, source, tensor_bytes, importance_of(source), QUICK)
    write_toy(small, toy(n_layers=32, n_rows=2, **architecture(options), **options))
    check_levels(tmp_path, small, tensor_bytes, importance_of(small), SLOW)


def architecture(options: dict[str, Any]) -> dict[str, str]:
    return {"architecture": "qwen3moe" if "n_experts" in options else "qwen3"}


@pytest.mark.parametrize(
    ("name", "has_imatrix"),
    [
        ("shapes", False),
        *((name, has_imatrix) for name in GOLDENS for has_imatrix in (False, True)),
    ],
)
def test_every_level_of_a_real_architecture_is_llama_cpps(
    tmp_path: Path,
    sources: Mapping[str, Path],
    tensor_bytes: Callable[[Path], Stored],
    name: str,
    has_imatrix: bool,
) -> None:
    source = sources[name]
    importance = importance_of(source) if has_imatrix else None
    check_levels(tmp_path, source, tensor_bytes, importance)


def test_overrides_are_llama_cpps(
    tmp_path: Path,
    write_toy: Callable[[Path, Any], None],
    toy: Callable[..., Any],
    tensor_bytes: Callable[[Path], Stored],
) -> None:
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("source", "ours", "theirs"))
    write_toy(source, toy(n_layers=12, n_columns=960, n_ffn_columns=2560))
    overrides = ((r"blk\.[0-3]\.ffn_down", "Q8_0"), ("ffn_down", "Q5_K"), ("attn_v", "Q6_K"))
    profile = with_tensor_types(load_profile("Q4_K_M"), [f"{a}={b}" for a, b in overrides])
    quantize_file(source, ours, text_encoder(profile))
    assert llama_quantize(source, theirs, "Q4_K_M", overrides=overrides)
    assert tensor_bytes(ours) == tensor_bytes(theirs)
    assert profile.name == "Q4_K_M-custom"
