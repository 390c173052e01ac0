"""LoRA adapters: merged as peft computes with them, to the bound of any other conversion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.numbers import decode
from edgevlm_convert.safetensors import read_header
from numpy.typing import NDArray

from edgevlm.errors import CheckpointError, ConversionError, EdgeVLMError, SourceNotFoundError
from edgevlm.runtime.vlm import open_vlm
from tests.convert.test_reference import STRICT_BOUND, kld
from tests.convert.tricks import split_safetensors
from tests.goldens.files import ADAPTER, golden_cases, redraw_adapter
from tests.synthetic import encode, write_checkpoint, write_safetensors

Golden = Callable[[str], Path]
Array = NDArray[np.float32]
LAYER = "model.language_model.layers.0."
QUERY = f"{LAYER}self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return redraw_adapter(tmp_path / "adapter")


def write_adapter(
    folder: Path, tensors: Mapping[str, Array], config: Mapping[str, Any] | None = None
) -> Path:
    """Write an adapter of float32 tensors, named without peft's prefix."""
    folder.mkdir()
    write_safetensors(
        folder / "adapter_model.safetensors",
        {
            f"base_model.model.{name}": ("F32", values.shape, encode(values, "F32"))
            for name, values in tensors.items()
        },
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **(config or {})}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def drawn(*shape: int) -> Array:
    values = np.random.PCG64([*shape]).random_raw(int(np.prod(shape)))
    return ((values % 2001) / 1000 - 1).astype(np.float32).reshape(shape)


def source(checkpoint: Path, name: str) -> Array:
    for shard in sorted(checkpoint.glob("*.safetensors")):
        for tensor in read_header(shard):
            if tensor.name == name:
                return decode(tensor, 0, tensor.n_values).reshape(tensor.shape)
    raise AssertionError(name)


def target(plan: ConversionPlan, name: str) -> Array:
    tensors = [*plan.text.tensors, *plan.mmproj.tensors]
    tensor = next(tensor for tensor in tensors if tensor.info.name == name)
    n_rows = int(np.prod(tensor.info.shape[:-1]))
    return np.concatenate(
        [tensor.read(start, min(start + 5, n_rows)) for start in range(0, n_rows, 5)]
    ).reshape(tensor.info.shape)


def test_logits_are_pefts(golden: Golden, adapter: Path, tmp_path: Path) -> None:
    """Rank and alpha patterns, rsLoRA, DoRA, tower and projector, a module saved whole."""
    paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    plan = plan_conversion(golden("qwen3_vl"), outtype="f32", adapter=adapter)
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    cases = golden_cases(ADAPTER)
    with open_vlm(model=paths[0], mmproj=paths[1], n_ctx=256, device="cpu", strict=True) as vlm:
        assert max(float(kld(vlm, case).max()) for case in cases) <= STRICT_BOUND


def test_every_adapter_tensor_is_in_the_ledger(golden: Golden, adapter: Path) -> None:
    plan = plan_conversion(golden("qwen3_vl"), adapter=adapter)
    header, _ = split_safetensors(adapter / "adapter_model.safetensors")
    assert set(header) - {"__metadata__"} <= set(plan.ledger.used)
    assert plan.outtype == "BF16", "the checkpoint's own type"


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / np.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 5}}, 2.5),
        ({"alpha_pattern": {"k_proj": 5}}, 3.0),
        ({"r": 8, "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}}, 3.0),
    ],
)
def test_the_scale(golden: Golden, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    checkpoint = golden("qwen3_vl")
    base = source(checkpoint, f"{QUERY}.weight")
    pair = drawn(2, base.shape[1]), drawn(base.shape[0], 2)
    folder = write_adapter(
        tmp_path / "a",
        {f"{QUERY}.lora_A.weight": pair[0], f"{QUERY}.lora_B.weight": pair[1]},
        config,
    )
    merged = target(plan_conversion(checkpoint, adapter=folder), "blk.0.attn_q.weight")
    expected = base + np.float32(scale) * (pair[1] @ pair[0])
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(merged - base).max() > 0.1


def test_old_names_find_new_ones(golden: Golden, tmp_path: Path) -> None:
    checkpoint = golden("qwen3_vl")
    base = source(checkpoint, f"{QUERY}.weight")
    module = QUERY.replace("model.language_model.", "model.")
    pair = drawn(2, base.shape[1]), drawn(base.shape[0], 2)
    folder = write_adapter(
        tmp_path / "a", {f"{module}.lora_A.weight": pair[0], f"{module}.lora_B.weight": pair[1]}
    )
    merged = target(plan_conversion(checkpoint, adapter=folder), "blk.0.attn_q.weight")
    np.testing.assert_allclose(merged, base + 3 * (pair[1] @ pair[0]), rtol=1e-6, atol=1e-6)


def test_an_embedding(golden: Golden, tmp_path: Path) -> None:
    checkpoint = golden("qwen3_vl")
    module = "model.language_model.embed_tokens"
    base = source(checkpoint, f"{module}.weight")
    pair = drawn(2, base.shape[0]), drawn(base.shape[1], 2)
    folder = write_adapter(
        tmp_path / "a",
        {f"{module}.lora_embedding_A": pair[0], f"{module}.lora_embedding_B": pair[1]},
    )
    merged = target(plan_conversion(checkpoint, adapter=folder), "token_embd.weight")
    np.testing.assert_allclose(merged, base + 3 * (pair[1] @ pair[0]).T, rtol=1e-6, atol=1e-6)


def test_the_patch_kernel(golden: Golden, tmp_path: Path) -> None:
    checkpoint = golden("qwen3_vl")
    module = "model.visual.patch_embed.proj"
    base = source(checkpoint, f"{module}.weight")
    pair = drawn(2, *base.shape[1:]), drawn(base.shape[0], 2, 1, 1, 1)
    folder = write_adapter(
        tmp_path / "a", {f"{module}.lora_A.weight": pair[0], f"{module}.lora_B.weight": pair[1]}
    )
    plan = plan_conversion(checkpoint, adapter=folder)
    delta = pair[1].reshape(-1, 2) @ pair[0].reshape(2, -1)
    expected = base + 3 * delta.reshape(base.shape)
    for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
        merged = target(plan, name)
        np.testing.assert_allclose(merged, expected[:, :, frame], rtol=1e-6, atol=1e-6)


def test_a_tensor_that_the_adapter_replaces_is_in_the_ledger(
    golden: Golden, tmp_path: Path
) -> None:
    checkpoint = golden("qwen3_vl")
    name = f"{LAYER}input_layernorm.weight"
    values = source(checkpoint, name) + 1
    plan = plan_conversion(checkpoint, adapter=write_adapter(tmp_path / "a", {name: values}))
    np.testing.assert_array_equal(target(plan, "blk.0.attn_norm.weight"), values)
    saved = f"base_model.model.{name}"
    assert plan.adapted == {name: (saved,)}
    assert plan.ledger.used[saved] == ("blk.0.attn_norm.weight",)
    assert plan.ledger.dropped[name] == f"the adapter's `{saved}` stands in its place"


def test_what_an_unread_block_learned_is_dropped_with_it(golden: Golden, tmp_path: Path) -> None:
    checkpoint = golden("llava_clip_llama")
    whole = plan_conversion(checkpoint).ledger
    base = next(name for name in whole.dropped if name.endswith("q_proj.weight"))
    rows, columns = source(checkpoint, base).shape
    module = base.removesuffix(".weight")
    pair = {"A": drawn(2, columns), "B": drawn(rows, 2)}
    folder = write_adapter(
        tmp_path / "a", {f"{module}.lora_{letter}.weight": pair[letter] for letter in "AB"}
    )
    plan = plan_conversion(checkpoint, adapter=folder)
    assert len(plan.adapted[base]) == 2
    assert set(plan.adapted[base]) | {base} <= set(plan.ledger.dropped)
    assert {plan.ledger.dropped[name] for name in plan.adapted[base]} == {whole.dropped[base]}


def test_a_pair_is_added_to_the_embedding_that_was_saved_with_it(
    golden: Golden, tmp_path: Path
) -> None:
    checkpoint = golden("qwen3_vl")
    module = "model.language_model.embed_tokens"
    base = source(checkpoint, f"{module}.weight")
    whole = base + drawn(*base.shape)
    pair = drawn(2, base.shape[0]), drawn(base.shape[1], 2)
    tensors = {
        f"{module}.base_layer.weight": whole,
        f"{module}.lora_embedding_A": pair[0],
        f"{module}.lora_embedding_B": pair[1],
    }
    plan = plan_conversion(checkpoint, adapter=write_adapter(tmp_path / "a", tensors))
    merged = target(plan, "token_embd.weight")
    np.testing.assert_allclose(merged, whole + 3 * (pair[1] @ pair[0]).T, rtol=1e-6, atol=1e-5)
    names = {f"base_model.model.{name}" for name in tensors}
    assert set(plan.adapted[f"{module}.weight"]) == names <= set(plan.ledger.used)
    assert f"{module}.weight" in plan.ledger.dropped


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_embedding_that_the_output_is_tied_to_is_refused(tmp_path: Path, is_whole: bool) -> None:
    """peft trains the one and leaves the other; merged they would be one."""
    module = "model.language_model.embed_tokens"
    write_checkpoint(tmp_path / "checkpoint", tied=True)
    base = source(tmp_path / "checkpoint", f"{module}.weight")
    pair = drawn(2, base.shape[0]), drawn(base.shape[1], 2)
    tensors = {f"{module}.lora_embedding_A": pair[0], f"{module}.lora_embedding_B": pair[1]}
    folder = write_adapter(tmp_path / "a", {f"{module}.weight": base} if is_whole else tensors)
    with pytest.raises(ConversionError, match="are tied in the checkpoint") as caught:
        plan_conversion(tmp_path / "checkpoint", adapter=folder)
    assert "untie the checkpoint" in caught.value.hint
    folder = write_adapter(tmp_path / "b", {"lm_head.weight": base})
    with pytest.raises(ConversionError, match=r"finds no `lm_head.weight`") as caught:
        plan_conversion(tmp_path / "checkpoint", adapter=folder)
    assert "untie the checkpoint" in caught.value.hint


def test_a_tied_head_of_its_own_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = True
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "lm_head.weight" in plan_conversion(tmp_path / "checkpoint").ledger.dropped
    values = source(tmp_path / "checkpoint", "lm_head.weight")
    folder = write_adapter(tmp_path / "a", {"lm_head.weight": values})
    with pytest.raises(ConversionError, match=r"changes `lm_head.weight`: output and") as caught:
        plan_conversion(tmp_path / "checkpoint", adapter=folder)
    assert "tie_word_embeddings" in caught.value.hint


PAIR = {"A": drawn(2, 96), "B": drawn(192, 2)}
WRONG: list[tuple[str, dict[str, Array], dict[str, Any], str]] = [
    (
        "no base",
        {"model.nowhere.lora_A.weight": PAIR["A"], "model.nowhere.lora_B.weight": PAIR["B"]},
        {},
        "`base_model.model.model.nowhere.lora_A.weight` finds no `model.nowhere.weight`",
    ),
    (
        "two for one",
        {
            f"{QUERY}.lora_A.weight": PAIR["A"],
            f"{QUERY}.lora_B.weight": PAIR["B"],
            f"{QUERY}.weight": drawn(192, 96),
        },
        {},
        f"are both for `{QUERY}.weight`",
    ),
    ("no partner", {f"{QUERY}.lora_A.weight": PAIR["A"]}, {}, "has no partner"),
    (
        "another width",
        {f"{QUERY}.lora_A.weight": drawn(2, 95), f"{QUERY}.lora_B.weight": PAIR["B"]},
        {},
        r"has shape [2, 95]",
    ),
    (
        "another rank",
        {f"{QUERY}.lora_A.weight": PAIR["A"], f"{QUERY}.lora_B.weight": PAIR["B"]},
        {"r": 4},
        "the rank 4, its tensors 2",
    ),
    (
        "a whole module of another shape",
        {f"{QUERY}.weight": drawn(3, 3)},
        {},
        "has shape [3, 3]",
    ),
    (
        "a pattern that is none",
        {f"{QUERY}.lora_A.weight": PAIR["A"], f"{QUERY}.lora_B.weight": PAIR["B"]},
        {"alpha_pattern": {"(": 2}},
        "expected a regular expression",
    ),
    (
        "a pattern for ever",
        {f"{QUERY}.lora_A.weight": PAIR["A"], f"{QUERY}.lora_B.weight": PAIR["B"]},
        {"rank_pattern": {"(a+)+": 2}},
        "expected a simpler pattern",
    ),
    ("another method", {}, {"peft_type": "IA3"}, "`peft_type` is 'IA3'"),
    ("transposed", {}, {"fan_in_fan_out": True}, "`fan_in_fan_out` is True"),
    ("another base", {}, {"init_lora_weights": "pissa_niter_4"}, "`init_lora_weights`"),
    ("experts", {}, {"target_parameters": ["mlp.experts.down_proj"]}, "`target_parameters`"),
]


@pytest.mark.parametrize(
    ("tensors", "config", "expected"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG]
)
def test_what_cannot_be_merged_is_named(
    golden: Golden,
    tmp_path: Path,
    tensors: dict[str, Array],
    config: dict[str, Any],
    expected: str,
) -> None:
    folder = write_adapter(tmp_path / "a", tensors, config)
    with pytest.raises((ConversionError, CheckpointError), match=re.escape(expected)) as caught:
        plan_conversion(golden("qwen3_vl"), adapter=folder)
    assert caught.value.hint


def test_folders_that_are_no_adapter(golden: Golden, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="is no adapter: there is no such folder"):
        plan_conversion(golden("qwen3_vl"), adapter=tmp_path / "nowhere")
    with pytest.raises(SourceNotFoundError, match=r"it has no adapter_config.json"):
        plan_conversion(golden("qwen3_vl"), adapter=golden("qwen3_vl"))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(EdgeVLMError, match=r"has no adapter_model.safetensors") as caught:
        plan_conversion(golden("qwen3_vl"), adapter=adapter)
    assert "pickles are not read" in caught.value.hint
