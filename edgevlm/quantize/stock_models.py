"""What a level comes to on two stock models: bits per weight without a file at hand.

The models have the shapes of two that are published: one whose rows divide by 256, one whose rows
do not, where the field's names promise fewer bits than they keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import TypedValue, string, u32

from edgevlm.ggml_types import tensor_n_bytes
from edgevlm.quantize.plan import plan_text
from edgevlm.quantize.profile import QuantProfile


@dataclass(frozen=True, kw_only=True)
class StockModel:
    """The shape of a dense text model whose output is tied to its embedding.

    Attributes:
        name: that people know its size by.
        n_layers: blocks.
        n_columns: the embedding's width, the row length of most matrices.
        n_ffn: the feed-forward's width.
        n_heads: query heads.
        n_kv_heads: key heads.
        head_size: values per head.
        n_tokens: of the vocabulary.
    """

    name: str
    n_layers: int
    n_columns: int
    n_ffn: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    n_tokens: int


# Qwen3-VL-2B and SmolVLM2-500M, as their config.json tell.
WIDE = StockModel(
    name="2B",
    n_layers=28,
    n_columns=2048,
    n_ffn=6144,
    n_heads=16,
    n_kv_heads=8,
    head_size=128,
    n_tokens=151_936,
)
NARROW = StockModel(
    name="500M",
    n_layers=32,
    n_columns=960,
    n_ffn=2560,
    n_heads=15,
    n_kv_heads=5,
    head_size=64,
    n_tokens=49_280,
)


def bits_per_weight(profile: QuantProfile, model: StockModel) -> float:
    """Return the bits per weight of a stock model's matrices at this level, with an imatrix."""
    tensors = _tensors(model)
    plan = plan_text(profile, tensors, _metadata(model), has_imatrix=True)
    n_bytes = sum(tensor_n_bytes(tensor.shape, plan.types[tensor.name]) for tensor in tensors)
    return 8 * n_bytes / sum(prod(tensor.shape) for tensor in tensors)


def _tensors(model: StockModel) -> list[TensorInfo]:
    width, ffn = model.n_columns, model.n_ffn
    n_q, n_kv = model.n_heads * model.head_size, model.n_kv_heads * model.head_size
    shapes = {
        "attn_q": (n_q, width),
        "attn_k": (n_kv, width),
        "attn_v": (n_kv, width),
        "attn_output": (width, n_q),
        "ffn_gate": (ffn, width),
        "ffn_up": (ffn, width),
        "ffn_down": (width, ffn),
    }
    names = {"token_embd.weight": (model.n_tokens, width)} | {
        f"blk.{layer}.{part}.weight": shape
        for layer in range(model.n_layers)
        for part, shape in shapes.items()
    }
    return [TensorInfo(name=name, shape=shape, type="F16") for name, shape in names.items()]


def _metadata(model: StockModel) -> Mapping[str, TypedValue]:
    return {
        "general.architecture": string("stock"),
        "stock.block_count": u32(model.n_layers),
        "stock.attention.head_count": u32(model.n_heads),
        "stock.attention.head_count_kv": u32(model.n_kv_heads),
    }
