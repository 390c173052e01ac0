from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.gguf_file import read_gguf
from tests.quantize.quantizing import llama_quantize as _llama_quantize


@dataclass(frozen=True, kw_only=True)
class ToyModel:
    """A model whose matrices have few rows: types depend on names, columns and counts only."""

    n_layers: int = 4
    n_columns: int = 256
    n_ffn_columns: int | None = None
    n_rows: int = 4
    architecture: str = "qwen3"
    is_tied: bool = True
    n_experts: int = 0
    has_shared_expert: bool = False
    n_kv_heads: int = 2
    has_joined_qkv: bool = False
    source_type: str = "F16"


def _names(model: ToyModel) -> Sequence[tuple[str, tuple[int, ...]]]:
    rows, columns = model.n_rows, model.n_columns
    ffn = model.n_ffn_columns or columns
    names: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (rows, columns)),
        ("output_norm.weight", (columns,)),
    ]
    if not model.is_tied:
        names.append(("output.weight", (rows, columns)))
    experts = (model.n_experts,) if model.n_experts else ()
    suffix = "_exps" if model.n_experts else ""
    attention = ("attn_qkv",) if model.has_joined_qkv else ("attn_q", "attn_k", "attn_v")
    # Layers in an order that is neither the number's nor the name's.
    for layer in sorted(range(model.n_layers), key=lambda number: (number % 3, number)):
        names += [(f"blk.{layer}.{part}.weight", (rows, columns)) for part in attention]
        names += [
            (f"blk.{layer}.attn_norm.weight", (columns,)),
            (f"blk.{layer}.attn_output.weight", (rows, columns)),
            (f"blk.{layer}.ffn_gate{suffix}.weight", (*experts, rows, columns)),
            (f"blk.{layer}.ffn_up{suffix}.weight", (*experts, rows, columns)),
            (f"blk.{layer}.ffn_down{suffix}.weight", (*experts, rows, ffn)),
        ]
        if model.n_experts:
            names.append((f"blk.{layer}.ffn_gate_inp.weight", (model.n_experts, columns)))
        if model.has_shared_expert:
            names.append((f"blk.{layer}.ffn_down_shexp.weight", (rows, columns)))
    return names


def _write_toy(path: Path, model: ToyModel) -> None:
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name("toy")
    writer.add_block_count(model.n_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(model.n_columns)
    writer.add_feed_forward_length(model.n_columns)
    writer.add_head_count(8)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    if model.n_experts:
        writer.add_expert_count(model.n_experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(model.n_columns)
    writer.add_file_type(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    random = np.random.default_rng(3)
    for name, shape in _names(model):
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 or "gate_inp" in name:
            writer.add_tensor(name, values)
        elif model.source_type == "BF16":
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_bytes(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    return {
        tensor.name: (
            tensor.type,
            tensor.shape,
            data[tensor.offset : tensor.offset + tensor.n_bytes],
        )
        for tensor in read_gguf(path).tensors
    }


@pytest.fixture
def write_toy() -> Callable[[Path, ToyModel], None]:
    return _write_toy


@pytest.fixture
def toy() -> type[ToyModel]:
    return ToyModel


@pytest.fixture
def llama_quantize() -> Callable[[Path, Path, str], bool]:
    return _llama_quantize


@pytest.fixture
def tensor_bytes() -> Callable[[Path], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    return _tensor_bytes
