"""Experts in every form that checkpoints have, also 8-bit; adapters on what a hybrid reorders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.safetensors import SourceTensor, read_header
from edgevlm_convert.shape_rules import TransposedMatrices
from numpy.typing import NDArray

from edgevlm.errors import ConversionError
from tests.convert.test_adapter import drawn, source, target, write_adapter
from tests.convert.test_dequantize import blockwise
from tests.convert.tricks import split_safetensors
from tests.goldens.files import redraw
from tests.goldens.qwen3_checkpoints import Weights, pack_experts, rewrite, transpose_experts
from tests.goldens.recipes.qwen3_5 import HEAD, N_KEY, N_VALUE

Array = NDArray[np.float32]
Adapt = Callable[[Path], None]
LAYER = "model.language_model.layers.0."
NAMES = tuple(f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))


def as_saved(folder: Path) -> None:
    """Leave a checkpoint as transformers saves it."""
    del folder


# What the class is saved as, and what is published.
FORMS: list[tuple[str, Adapt]] = [
    ("qwen3_vl_moe", as_saved),
    ("qwen3_vl_moe", transpose_experts),
    ("qwen3_5_moe", as_saved),
    ("qwen3_5_moe", pack_experts),
]
each_form = pytest.mark.parametrize(
    ("golden", "adapt"), FORMS, ids=[f"{name} {adapt.__name__}" for name, adapt in FORMS]
)


def floats(raw: bytes, shape: tuple[int, ...]) -> Array:
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)


def stacks(plan: ConversionPlan) -> dict[str, Array]:
    """Return the experts of the first layer, read in pieces that end inside a matrix."""
    return {name: target(plan, name) for name in NAMES}


def quantize_experts(folder: Path) -> dict[str, Array]:
    """Make every expert FP8 with a scale for each block; return what that is worth, by name."""
    expected: dict[str, Array] = {}

    def change(weights: Weights) -> Weights:
        changed: Weights = {}
        for name, (dtype, shape, raw) in weights.items():
            if ".mlp.experts." not in name:
                changed[name] = (dtype, shape, raw)
                continue
            matrices = floats(raw, shape).reshape(-1, *shape[-2:])
            parts = [blockwise(name, matrix) for matrix in matrices]
            expected[name] = np.stack([values for _, values in parts]).reshape(shape)
            for part, (kind, size, _) in parts[0][0].items():
                data = b"".join(stored[part][2] for stored, _ in parts)
                changed[part] = (kind, (*shape[:-2], *size), data)
        return changed

    rewrite(folder, change)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 16]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return expected


def stacked(values: dict[str, Array], *, transposed: bool) -> dict[str, Array]:
    """Return gate, up and down of the first layer from the values of a checkpoint's tensors."""
    experts = f"{LAYER}mlp.experts."
    if f"{experts}down_proj" in values:
        both, down = values[f"{experts}gate_up_proj"], values[f"{experts}down_proj"]
        if transposed:
            both, down = both.swapaxes(1, 2), down.swapaxes(1, 2)
        gate, up = np.split(both, 2, axis=1)
        return dict(zip(NAMES, (gate, up, down), strict=True))
    n_experts = sum(name.startswith(experts) for name in values) // 3
    return {
        target_name: np.stack(
            [values[f"{experts}{number}.{part}_proj.weight"] for number in range(n_experts)]
        )
        for target_name, part in zip(NAMES, ("gate", "up", "down"), strict=True)
    }


@each_form
def test_experts_of_eight_bits(tmp_path: Path, golden: str, adapt: Adapt) -> None:
    folder = redraw(golden, tmp_path / "checkpoint")
    adapt(folder)
    values = quantize_experts(folder)
    plan = plan_conversion(folder)
    assert plan.outtype == "BF16", "the type of what is not quantized"
    expected = stacked(values, transposed=adapt is transpose_experts)
    found = stacks(plan)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])
    header, _ = split_safetensors(folder / "model.safetensors")
    assert set(header) - {"__metadata__"} == set(plan.ledger.used) | set(plan.ledger.dropped)
    scales = [name for name in header if "experts" in name and name.endswith("_scale_inv")]
    assert scales
    for scale in scales:
        assert plan.ledger.used[scale] == plan.ledger.used[scale.removesuffix("_scale_inv")]


@pytest.mark.parametrize("golden", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_every_form_gives_the_same_experts(tmp_path: Path, golden: str) -> None:
    found: list[dict[str, Array]] = []
    for number, adapt in enumerate(adapt for name, adapt in FORMS if name == golden):
        folder = redraw(golden, tmp_path / str(number))
        adapt(folder)
        found.append(stacks(plan_conversion(folder)))
    for name in NAMES:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_experts_of_two_types_are_stacked_as_float32(tmp_path: Path) -> None:
    folder = redraw("qwen3_5_moe", tmp_path / "checkpoint")
    before = stacks(plan_conversion(folder))
    one = f"{LAYER}mlp.experts.1.up_proj.weight"

    def change(weights: Weights) -> Weights:
        _, shape, raw = weights[one]
        return weights | {one: ("F32", shape, floats(raw, shape).tobytes())}

    rewrite(folder, change)
    after = stacks(plan_conversion(folder))
    for name in NAMES:
        np.testing.assert_array_equal(after[name], before[name])


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = redraw("qwen3_5_moe", tmp_path / "checkpoint")
    name = f"{LAYER}mlp.experts.2.down_proj.weight"
    rewrite(folder, lambda weights: {key: weights[key] for key in weights if key != name})
    with pytest.raises(ConversionError, match=r"experts\.2\.down_proj"):
        plan_conversion(folder)


def test_an_adapter_of_one_expert(golden: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = golden("qwen3_5_moe")
    module = f"{LAYER}mlp.experts.1.gate_proj"
    base = source(checkpoint, f"{module}.weight")
    pair = drawn(2, base.shape[1]), drawn(base.shape[0], 2)
    names = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    folder = write_adapter(tmp_path / "a", dict(zip(names, pair, strict=True)))
    plan = plan_conversion(checkpoint, adapter=folder)
    found, before = stacks(plan), stacks(plan_conversion(checkpoint))
    expected = before[NAMES[0]].copy()
    expected[1] += 3 * (pair[1] @ pair[0])
    np.testing.assert_allclose(found[NAMES[0]], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[NAMES[1]], before[NAMES[1]])
    for name in names:
        assert plan.ledger.used[f"base_model.model.{name}"] == (NAMES[0],)


@pytest.mark.parametrize("part", ["in_proj_qkv", "out_proj"])
def test_an_adapter_of_linear_attention_is_merged_before_heads_are_put_in_order(
    golden: Callable[[str], Path], tmp_path: Path, part: str
) -> None:
    checkpoint = golden("qwen3_5")
    module = f"{LAYER}linear_attn.{part}"
    base = source(checkpoint, f"{module}.weight")
    pair = drawn(2, base.shape[1]), drawn(base.shape[0], 2)
    folder = write_adapter(
        tmp_path / "a", {f"{module}.lora_A.weight": pair[0], f"{module}.lora_B.weight": pair[1]}
    )
    plan = plan_conversion(checkpoint, adapter=folder)
    merged = (base + 3 * (pair[1] @ pair[0])).astype(np.float32)

    def in_order(rows: Array) -> Array:
        heads = rows.reshape(N_KEY, N_VALUE // N_KEY, HEAD, -1)
        return heads.swapaxes(0, 1).reshape(rows.shape)

    if part == "out_proj":
        expected, name = in_order(np.ascontiguousarray(merged.T)).T, "blk.0.ssm_out.weight"
    else:
        n_first = 2 * N_KEY * HEAD
        expected = np.concatenate([merged[:n_first], in_order(merged[n_first:])])
        name = "blk.0.attn_qkv.weight"
    np.testing.assert_allclose(target(plan, name), expected, rtol=1e-6, atol=1e-6)


def test_few_transposed_matrices_are_kept(tmp_path: Path) -> None:
    folder = redraw("qwen3_vl_moe", tmp_path / "checkpoint")
    name = f"{LAYER}mlp.experts.down_proj"
    shards = sorted(folder.glob("*.safetensors"))
    tensor = next(one for shard in shards for one in read_header(shard) if one.name == name)
    reads: list[int] = []

    class Counted(SourceTensor):
        def bits(self, start: int, stop: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
            reads.append(start)
            return super().bits(start, stop)

    counted = Counted(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        path=tensor.path,
        offset=tensor.offset,
    )
    kept = TransposedMatrices(max_kept=2)
    for matrix in (0, 0, 1, 0, 2, 0, 1):
        found = kept.get(counted, matrix, 0, 1)
        size = tensor.n_values // tensor.shape[0]
        whole = tensor.bits(matrix * size, (matrix + 1) * size).reshape(tensor.shape[1:])
        np.testing.assert_array_equal(found, whole.T)
    # What was used last stays: of seven, 0, 1, 2 and 1 again are read.
    assert len(reads) == 4
