"""Qwen4-Exp: what transformers' defaults come to, tables in shards or whole, what is refused.

No published checkpoint was at hand: the size is that of the defaults of `Qwen4ExpConfig`, with an
indexer and n-grams, which the class has none of unless they are named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.row_rules import Cut, Joined

from edgevlm.errors import CheckpointError, ConversionError
from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import Weights, rewrite
from tests.goldens.recipe import Config
from tests.synthetic import write_json

_PLE = "model.language_model.layers.1.ple.ple_embedding."
_TABLE = f"{_PLE}ngram_embedding."


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("qwen4_exp"), tmp_path / "checkpoint"))


def change(folder: Path, **text: Any) -> None:
    config: Config = read_golden_json(folder / "config.json")
    config["text_config"] |= text
    write_json(folder / "config.json", config)


def text_file(folder: Path) -> bytes:
    paths = folder.parent / "text.gguf", folder.parent / "mmproj.gguf"
    convert_checkpoint(plan_conversion(folder), text_path=paths[0], mmproj_path=paths[1])
    return paths[0].read_bytes()


def test_a_table_is_the_same_in_shards_and_whole(checkpoint: Path) -> None:
    in_shards = text_file(checkpoint)

    def whole(weights: Weights) -> Weights:
        shards = [weights.pop(f"{_TABLE}shard_{number}.weight") for number in (0, 1)]
        rows = sum(shape[0] for _, shape, _ in shards)
        joined = b"".join(raw for _, _, raw in shards)
        return weights | {f"{_TABLE}weight": ("BF16", (rows, shards[0][1][1]), joined)}

    rewrite(checkpoint, whole)
    assert text_file(checkpoint) == in_shards


def test_constants_stand_in_keys_with_all_their_bits(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint)
    keys = plan.text.metadata
    assert max(keys["qwen4exp.ple.layer_multipliers"].value) > 1 << 53  # pyright: ignore[reportArgumentType]
    assert "64 bits" in plan.ledger.dropped[f"{_PLE}layer_multipliers"]


def test_a_checkpoint_without_ngrams(checkpoint: Path) -> None:
    rewrite(
        checkpoint, lambda all_: {name: one for name, one in all_.items() if ".ple." not in name}
    )
    change(checkpoint, ple_layer_ids=[])
    plan = plan_conversion(checkpoint)
    assert not any(".ple." in key for key in plan.text.metadata)
    assert any("more than 256 tokens" in loss for loss in plan.losses)


def test_heads_for_several_tokens_are_left_out_by_name(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda all_: {**all_, "mtp.fc.weight": ("BF16", (2, 2), bytes(8))})
    assert "multi-token" in plan_conversion(checkpoint).ledger.dropped["mtp.fc.weight"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_gate_type", "silu"),
        ("output_gate_type", None),
        ("norm_topk_prob", False),
        ("hc_count", 1),
        ("indexer_n_heads", None),
        ("indexer_kv_heads", 2),
        ("indexer_compress_ratio", 128),
        ("indexer_budget", 255),
        ("indexer_head_dim", 4),
        ("layer_types", ["sliding_attention"] * 4),
        ("ple_layer_ids", [1, 2]),
        ("ple_layer_ids", [4]),
        ("ple_embed_dim", 32),
        ("ngram_size", 9),
        ("heads_per_ngram", 33),
        ("eos_token_id", None),
        ("ple_conv_kernel_size", 0),
    ],
)
def test_what_the_graph_does_not_compute_is_refused_by_name(
    checkpoint: Path, key: str, value: object
) -> None:
    change(checkpoint, **{key: value})
    with pytest.raises((CheckpointError, ConversionError), match=key.removesuffix("_ids")):
        plan_conversion(checkpoint)


@pytest.mark.parametrize("values", [[0, 53, 112, 1 << 40], [0, 53, 112, 500], [0, 53, -1, 173]])
def test_hashes_beyond_the_table_are_refused(checkpoint: Path, values: list[int]) -> None:
    name = f"{_PLE}ngram_heads_offsets"
    raw = np.asarray(values, dtype="<i8").tobytes()
    rewrite(checkpoint, lambda all_: {**all_, name: ("I64", (4,), raw)})
    with pytest.raises(CheckpointError, match="ngram"):
        plan_conversion(checkpoint)


def test_a_constant_that_is_missing_is_named(checkpoint: Path) -> None:
    name = f"{_PLE}layer_multipliers"
    rewrite(checkpoint, lambda all_: {key: one for key, one in all_.items() if key != name})
    with pytest.raises(ConversionError, match="layer_multipliers"):
        plan_conversion(checkpoint)


def test_rows_are_cut_and_joined_slab_by_slab(checkpoint: Path) -> None:
    tensors = open_checkpoint(checkpoint).tensors
    name = f"{_TABLE}shard_0.weight"
    rows, width = tensors[name].shape
    parts = Cut(source=name, width=width, targets={"a": 7, "b": rows - 7}).apply(tensors)
    whole = Joined(sources={name: rows}, width=width, target="t").apply(tensors)[0]
    read = np.concatenate([part.read(0, part.shape[0]) for part in parts])
    assert (read == whole.read(0, rows)).all()
    twice = Joined(
        sources={name: rows, f"{_TABLE}shard_1.weight": rows}, width=width, target="t"
    ).apply(tensors)[0]
    slabs = [twice.read(start, min(start + 50, 2 * rows)) for start in range(0, 2 * rows, 50)]
    assert (np.concatenate(slabs) == twice.read(0, 2 * rows)).all()
