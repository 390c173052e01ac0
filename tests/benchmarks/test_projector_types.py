"""docs/quantization.md says what the results of benchmarks/projector_types.py say."""

from __future__ import annotations

import json

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import string
from edgevlm_convert.writer import OutputTensor, plan_gguf
from numpy.typing import NDArray

from tests.benchmarks.test_preprocessing import load

types = load("projector_types")
RESULTS = json.loads(types.RESULTS.read_text(encoding="utf-8"))


def test_the_page_says_what_the_results_say() -> None:
    page = types.PAGE.read_text(encoding="utf-8")
    assert types.table(RESULTS) in page
    assert list(RESULTS["cases"]) == list(types.CASES)
    for case in RESULTS["cases"].values():
        assert list(case["types"]) == list(types.TYPES)


def test_fewer_bits_are_smaller_and_farther() -> None:
    for case in RESULTS["cases"].values():
        numbers = [case["types"][name] for name in ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K")]
        for key in ("n_bytes", "cosine_mean", "cosine_min"):
            values = [one[key] for one in numbers]
            assert values == sorted(values, reverse=True), key


def _output(name: str, array: NDArray[np.float32]) -> OutputTensor:
    rows = array.reshape(-1, array.shape[-1])
    return OutputTensor(
        info=TensorInfo(name=name, shape=array.shape, type="F32"),
        read=lambda start, stop: rows[start:stop],
    )


def test_matrices_drawn_anew_keep_their_deviation_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    values = {"mm.0.weight": (64, 64), "v.position_embd.weight": (4, 64), "mm.0.bias": (64,)}
    arrays = {
        name: rng.normal(0.5, 0.1, shape).astype(np.float32) for name, shape in values.items()
    }
    tensors = [_output(name, array) for name, array in arrays.items()]
    plan = plan_gguf(metadata={"general.architecture": string("clip")}, tensors=tensors)
    drawn = {tensor.info.name: tensor for tensor in types.drawn_anew(plan).tensors}
    again = drawn["mm.0.weight"].read(0, 64)
    assert abs(again.std() - 0.1) < 0.01 > abs(again.mean() - 0.5)
    assert not np.array_equal(again, arrays["mm.0.weight"])
    assert drawn["v.position_embd.weight"] is tensors[1]
    assert drawn["mm.0.bias"] is tensors[2]
