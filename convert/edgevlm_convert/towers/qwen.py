"""The ViT of the Qwen-VL families: patches of two frames, 2 x 2 patches merged into one token.

Facts: what the graphs fix from tools/mtmd/models/qwen2vl.cpp and qwen3vl.cpp; config keys from
transformers' `Qwen2VLVisionConfig`, `Qwen2_5_VLVisionConfig` and `Qwen3VLVisionConfig`.
"""

from __future__ import annotations

import math
from itertools import chain

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Source
from edgevlm_convert.metadata import Value, f32
from edgevlm_convert.rules import Rename, Rule, Split
from edgevlm_convert.towers.vision import TowerSizes, pair, read_patch_size, read_tower

N_MERGED = 4
_N_FRAMES = 2


def check_qwen_tower(vision: Section, sizes: TowerSizes) -> None:
    """Refuse what the graphs compute in one way only, when the config asks for another.

    Raises:
        CheckpointError: such a value.
    """
    vision.require("spatial_merge_size", (2,), default=2)
    vision.require("temporal_patch_size", (_N_FRAMES,), default=_N_FRAMES)
    for key in ("in_channels", "in_chans"):
        vision.require(key, (3,), default=3)
    if (sizes.n_embd // sizes.n_head) % 4:
        vision.fail("num_heads", f"heads of {sizes.n_embd} channels in all, each divisible by 4")
    if vision.has("rope_parameters"):
        rope = vision.section("rope_parameters")
        rope.require("rope_theta", (10000, 10000.0), default=10000)
        rope.require("rope_type", ("axial", "default"), default="axial")


def patch_rules(prefix: str, sizes: TowerSizes, *, bias: bool) -> list[Rule]:
    """Return the rules of the patch kernel."""
    source, target = f"{prefix}patch_embed.proj", "v.patch_embd"
    rules: list[Rule] = [
        # llama.cpp has no 3-D convolution: one kernel per frame, and it adds their results.
        Split(
            source=f"{source}.weight",
            targets=(f"{target}.weight", f"{target}.weight.1"),
            shape=(sizes.n_embd, 3, _N_FRAMES, sizes.patch_size, sizes.patch_size),
            axis=2,
            squeeze=True,
            precision="f16 or f32",
        )
    ]
    if bias:
        rules.append(
            Rename(source=f"{source}.bias", target=f"{target}.bias", shape=(sizes.n_embd,))
        )
    return rules


def epsilon_metadata() -> dict[str, Value]:
    """Return the key of the vision norms' epsilon.

    transformers fixes it; llama.cpp's converter takes the text model's where it finds one.
    """
    return {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}


def read_n_out(source: Source, key: str) -> int:
    """Return the width of the text model, which the tower's `key` must name too.

    Raises:
        CheckpointError: they differ.
    """
    n_out = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    if source.vision.integer(key, low=1, high=MAX_WIDTH, default=n_out) != n_out:
        source.vision.fail(key, f"the text model's hidden_size {n_out}")
    return n_out


def position_rules(prefix: str, sizes: TowerSizes, n_positions: int) -> list[Rule]:
    """Return the rule of Qwen3-VL's position table, interpolated at run time, in float32 only."""
    return [
        Rename(
            source=f"{prefix}pos_embed.weight",
            target="v.position_embd.weight",
            shape=(n_positions, sizes.n_embd),
            precision="f32",
        )
    ]


def merger_rules(
    sources: tuple[str, str, str],
    targets: tuple[str, str, str],
    n_embd: int,
    n_out: int,
    *,
    n_norm: int,
) -> list[Rule]:
    """Return the rules of a Qwen3-VL merger: norm, two layers over four patches side by side."""
    merged = N_MERGED * n_embd
    shapes = (n_norm,), (merged, merged), (n_out, merged)
    pairs = (pair(*one) for one in zip(sources, targets, shapes, strict=True))
    return list(chain.from_iterable(pairs))


def qwen3_block_rules(prefix: str, sizes: TowerSizes) -> list[Rule]:
    """Return the rules of all blocks of a Qwen3-VL tower."""
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    rules: list[Rule] = []
    for layer in range(sizes.n_layers):
        source, target = f"{prefix}blocks.{layer}.", f"v.blk.{layer}."
        rules += [
            *pair(f"{source}norm1", f"{target}ln1", (n_embd,)),
            *pair(f"{source}attn.qkv", f"{target}attn_qkv", (3 * n_embd, n_embd)),
            *pair(f"{source}attn.proj", f"{target}attn_out", (n_embd, n_embd)),
            *pair(f"{source}norm2", f"{target}ln2", (n_embd,)),
            *pair(f"{source}mlp.linear_fc1", f"{target}ffn_up", (n_ff, n_embd)),
            *pair(f"{source}mlp.linear_fc2", f"{target}ffn_down", (n_embd, n_ff)),
        ]
    return rules


def read_qwen3_tower(vision: Section) -> tuple[TowerSizes, int]:
    """Return the sizes of a Qwen3-VL tower and the rows of its position table.

    Raises:
        CheckpointError: a size is missing, absurd, or one that the graph ignores.
    """
    n_positions = vision.integer("num_position_embeddings", low=1, high=1 << 20)
    side = math.isqrt(n_positions)
    if side**2 != n_positions:
        vision.fail("num_position_embeddings", "a square number")
    sizes = read_tower(
        vision, layers="depth", heads="num_heads", image_size=side * read_patch_size(vision)
    )
    check_qwen_tower(vision, sizes)
    vision.require("hidden_act", ("gelu_pytorch_tanh", "gelu"), default="gelu_pytorch_tanh")
    return sizes, n_positions
