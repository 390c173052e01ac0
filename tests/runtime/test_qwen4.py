"""Qwen4-Exp's text model: headers on which llama.cpp would end the process, its own caches."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.metadata import array, u32
from edgevlm_convert.writer import write_gguf

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.runtime.preflight import check_text_model
from edgevlm.runtime.text_memory import TextSizes, kv_cache, recurrent_state
from tests.convert.mutations import Mutation, nothing, text
from tests.goldens.files import redraw

NAME = "qwen4exp"
BROKEN: dict[str, Mutation] = {
    "takes 0 to 64": text(
        nothing, {f"{NAME}.attention.compress_ratios": array("INT32", [0, 0, 0, 65])}
    ),
    "takes 0": text(nothing, {f"{NAME}.attention.compress_ratios": array("INT32", [0, 0, 0, -1])}),
    "rotates 8 channels": text(nothing, {f"{NAME}.attention.indexer.key_length": u32(4)}),
    "rotates 7 channels": text(nothing, {f"{NAME}.rope.dimension_count": u32(7)}),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    return plan_conversion(redraw("qwen4_exp", tmp_path_factory.mktemp("qwen4")))


@pytest.mark.parametrize("blamed", BROKEN)
def test_a_broken_header_is_refused(plan: ConversionPlan, tmp_path: Path, blamed: str) -> None:
    path = tmp_path / "text.gguf"
    write_gguf(BROKEN[blamed](plan).text, path)
    with pytest.raises(GGUFError, match=blamed):
        check_text_model(path)


def test_streams_indexer_and_ngrams_are_in_the_prediction(
    plan: ConversionPlan, tmp_path: Path
) -> None:
    path = tmp_path / "text.gguf"
    write_gguf(plan.text, path)
    sizes = TextSizes.read(read_gguf(path))
    # One layer of attention with two heads of 32 channels each way, and 16 of the indexer.
    assert kv_cache(sizes, 512, "F16") == 512 * (2 * (32 + 32) + 16) * 2
    # Three of the linear ones, and two dilated taps over both streams.
    of_layers = 3 * (3 * 128 + 16 * 64)
    assert recurrent_state(sizes) == 4 * (of_layers + 2 * 3 * 2 * 64)
