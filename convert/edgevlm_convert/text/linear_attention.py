"""Gated delta nets, the linear attention of Qwen3.5: sizes, metadata, rules.

Facts: names and shapes from llama.cpp src/models/qwen35.cpp; keys, and what becomes of the tensors,
from conversion/qwen.py (`Qwen3NextModel`, `_LinearAttentionVReorderBase`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.config import MAX_HEADS, Section
from edgevlm_convert.metadata import Value, u32
from edgevlm_convert.rules import Rename, Rule, Transform
from edgevlm_convert.shape_rules import Reshaped
from edgevlm_convert.transforms import decay, reordered_columns, reordered_rows

_MAX_HEAD_DIM = 4096
_MAX_KERNEL = 64
# What transformers adds to a squared length before it divides by it; a config cannot change it.
_LENGTH_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class DeltaNet:
    """The numbers that shapes and metadata depend on.

    Attributes:
        n_embd: width of the residual stream.
        n_key_heads: heads of query and key.
        n_value_heads: heads of value, a multiple of the others.
        head_dim: channels of a head of any kind.
        kernel: tokens that the convolution sees.
    """

    n_embd: int
    n_key_heads: int
    n_value_heads: int
    head_dim: int
    kernel: int

    @property
    def n_key(self) -> int:
        """Channels of all query heads, and of all key heads."""
        return self.n_key_heads * self.head_dim

    @property
    def n_value(self) -> int:
        """Channels of all value heads."""
        return self.n_value_heads * self.head_dim

    def value_order(self, width: int) -> NDArray[np.int64]:
        """Return where each row of the file comes from, `width` rows for each value head.

        transformers has the value heads of one key head side by side; ggml repeats the key heads
        as a whole, so that head v belongs to key head v % n_key_heads.
        """
        heads = np.arange(self.n_value_heads).reshape(self.n_key_heads, -1).T.reshape(-1, 1)
        return (heads * width + np.arange(width)).reshape(-1)

    def joint_order(self) -> NDArray[np.int64]:
        """Return the same for query, key and value one after the other."""
        first = 2 * self.n_key
        return np.concatenate([np.arange(first), first + self.value_order(self.head_dim)])


def read_delta_net(text: Section, n_embd: int) -> DeltaNet:
    """Return the numbers of the linear attention.

    Raises:
        CheckpointError: a number is missing or absurd, or one that llama.cpp's graph ignores.
    """
    n_key_heads = text.integer("linear_num_key_heads", low=1, high=MAX_HEADS)
    n_value_heads = text.integer("linear_num_value_heads", low=1, high=MAX_HEADS)
    if n_value_heads % n_key_heads:
        text.fail("linear_num_value_heads", f"a multiple of the {n_key_heads} key heads")
    head_dim = text.integer("linear_key_head_dim", low=1, high=_MAX_HEAD_DIM)
    if text.integer("linear_value_head_dim", low=1, high=_MAX_HEAD_DIM) != head_dim:
        text.fail(
            "linear_value_head_dim",
            f"{head_dim}, as linear_key_head_dim: llama.cpp knows one size for both",
        )
    return DeltaNet(
        n_embd=n_embd,
        n_key_heads=n_key_heads,
        n_value_heads=n_value_heads,
        head_dim=head_dim,
        kernel=text.integer("linear_conv_kernel_dim", low=2, high=_MAX_KERNEL),
    )


def delta_net_metadata(name: str, net: DeltaNet) -> dict[str, Value]:
    """Return the keys of the linear attention's sizes."""
    return {
        f"{name}.ssm.conv_kernel": u32(net.kernel),
        f"{name}.ssm.state_size": u32(net.head_dim),
        f"{name}.ssm.group_count": u32(net.n_key_heads),
        f"{name}.ssm.time_step_rank": u32(net.n_value_heads),
        f"{name}.ssm.inner_size": u32(net.n_value),
    }


def delta_net_losses(epsilon: float) -> tuple[str, ...]:
    """Say what another epsilon of the norms means here: llama.cpp has one for all of them."""
    if epsilon == _LENGTH_EPSILON:
        return ()
    return (
        f"linear attention: llama.cpp normalizes queries and keys with the epsilon {epsilon:g} of"
        f" the norms, the model with {_LENGTH_EPSILON:g}",
    )


def delta_net_rules(source: str, target: str, net: DeltaNet) -> list[Rule]:
    """Return the rules of one layer's linear attention.

    Args:
        source: what the names in the checkpoint begin with.
        target: what the names in the file begin with.
        net: its numbers.
    """
    source = f"{source}linear_attn."
    n_joint = 2 * net.n_key + net.n_value
    convolution = Transform(
        source=f"{source}conv1d.weight",
        target=f"{target}ssm_conv1d.weight",
        shape=(n_joint, 1, net.kernel),
        rows=reordered_rows(net.joint_order()),
        precision="f32",
    )
    heads = net.value_order(1)
    shapes = {
        "in_proj_qkv": ("attn_qkv", (n_joint, net.n_embd), net.joint_order()),
        "in_proj_z": ("attn_gate", (net.n_value, net.n_embd), net.value_order(net.head_dim)),
        "in_proj_a": ("ssm_alpha", (net.n_value_heads, net.n_embd), heads),
        "in_proj_b": ("ssm_beta", (net.n_value_heads, net.n_embd), heads),
    }
    rules: list[Rule] = [
        Transform(
            source=f"{source}{name}.weight",
            target=f"{target}{to}.weight",
            shape=shape,
            rows=reordered_rows(order),
        )
        for name, (to, shape, order) in shapes.items()
    ]
    if net.n_key_heads == net.n_value_heads:
        rules = [
            Rename(source=f"{source}{name}.weight", target=f"{target}{to}.weight", shape=shape)
            for name, (to, shape, _) in shapes.items()
        ]
    return [
        *rules,
        Reshaped(rule=convolution, shape=(n_joint, net.kernel)),
        Transform(
            source=f"{source}A_log",
            target=f"{target}ssm_a",
            shape=(net.n_value_heads,),
            rows=decay(heads),
        ),
        Transform(
            source=f"{source}dt_bias",
            target=f"{target}ssm_dt.bias",
            shape=(net.n_value_heads,),
            rows=reordered_columns(heads),
        ),
        Rename(
            source=f"{source}norm.weight", target=f"{target}ssm_norm.weight", shape=(net.head_dim,)
        ),
        Transform(
            source=f"{source}out_proj.weight",
            target=f"{target}ssm_out.weight",
            shape=(net.n_embd, net.n_value),
            rows=reordered_columns(net.value_order(net.head_dim)),
        ),
    ]
