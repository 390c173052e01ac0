"""Experts and linear attention in memory: what llama.cpp reserves, and headers that say less."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion

from edgevlm.gguf_file import GGUFFile, read_gguf
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.repacked import repacked_n_bytes
from edgevlm.runtime.vlm import open_vlm
from tests.goldens.files import redraw

GOLDENS = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_small", "qwen3_5_moe")


@pytest.fixture(scope="module")
def text_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The goldens' text models as F16, by name."""

    @cache
    def converted(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        plan = plan_conversion(redraw(name, folder / "checkpoint"), outtype="f16")
        convert_checkpoint(plan, text_path=folder / "text.gguf", mmproj_path=folder / "mmproj.gguf")
        return folder / "text.gguf"

    return {name: converted(name) for name in GOLDENS}


def reserved(caplog: pytest.LogCaptureFixture, what: str) -> float:
    """Bytes that llama.cpp logged for a buffer, the last time it said so; 0: it never did."""
    found = re.findall(rf"{what} +buffer size = +([\d.]+) MiB", caplog.text)
    return float(found[-1]) * 2**20 if found else 0.0


@pytest.mark.parametrize("flash", ["auto", "off"])
@pytest.mark.parametrize("name", GOLDENS)
def test_cache_states_and_buffers_are_what_llama_cpp_reserves(
    text_paths: dict[str, Path], name: str, flash: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    path = text_paths[name]
    with open_vlm(
        model=path, n_ctx=768, flash_attention="off" if flash == "off" else "auto", n_threads=1
    ):
        pass
    found = predict_footprint(read_gguf(path), None, n_ctx=768, flash_attention=flash != "off")
    # The log has two decimals of MiB.
    assert found.kv_cache == pytest.approx(reserved(caplog, "KV"), abs=6000)
    assert found.recurrent_state == pytest.approx(reserved(caplog, "RS"), abs=6000)
    assert (found.recurrent_state > 0) == (name != "qwen3_vl_moe")
    compute = reserved(caplog, "compute")
    assert compute <= found.text_compute <= 1.35 * compute


def without(file: GGUFFile, *keys: str) -> GGUFFile:
    return replace(
        file, metadata={key: value for key, value in file.metadata.items() if key not in keys}
    )


def test_an_interval_stands_for_a_list_of_layers(text_paths: dict[str, Path]) -> None:
    file = read_gguf(text_paths["qwen3_5"])
    layers, interval = "qwen35.attention.recurrent_layers", "qwen35.full_attention_interval"
    listed = predict_footprint(file, None, n_ctx=256)
    for other in (without(file, layers), without(file, layers, interval)):
        assert predict_footprint(other, None, n_ctx=256) == listed
    # Five layers, one of them of full attention; the sixth is for multi-token prediction.
    n_key, n_value, head, kernel = 2, 6, 16, 4
    convolution = (kernel - 1) * (2 * n_key + n_value) * head
    assert listed.recurrent_state == 4 * 4 * (convolution + n_value * head * head)
    assert listed.kv_cache == 256 * 2 * 2 * 32 * 2


def test_states_and_caches_are_part_of_the_peak(text_paths: dict[str, Path]) -> None:
    found = predict_footprint(read_gguf(text_paths["qwen3_5"]), None, n_ctx=256)
    less = replace(found, recurrent_state=0)
    assert found.peak_n_bytes - less.peak_n_bytes == found.recurrent_state


def test_amx_leaves_experts_to_other_kernels(tmp_path: Path) -> None:
    encoder = text_encoder(load_profile("Q8_0"))
    checkpoint = redraw("qwen3_5_moe", tmp_path / "checkpoint")
    plan = plan_conversion(checkpoint, outtype="f16", text_encoder=encoder)
    path = tmp_path / "text.gguf"
    convert_checkpoint(
        plan, text_path=path, mmproj_path=tmp_path / "mmproj.gguf", text_encoder=encoder
    )
    file = read_gguf(path)
    dense = replace(file, tensors=tuple(one for one in file.tensors if len(one.shape) < 3))
    assert len(dense.tensors) < len(file.tensors)
    amx, dotprod = frozenset({"AMX_INT8"}), frozenset({"NEON", "DOTPROD"})
    assert 0 < repacked_n_bytes(file, amx) == repacked_n_bytes(dense, amx)
    assert repacked_n_bytes(file, dotprod) > repacked_n_bytes(dense, dotprod)
