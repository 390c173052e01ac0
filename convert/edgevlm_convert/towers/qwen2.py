"""What the towers of Qwen2-VL and Qwen2.5-VL share, beyond every Qwen-VL tower.

Facts: names and keys from llama.cpp conversion/qwenvl.py; what the graph fixes from
tools/mtmd/models/qwen2vl.cpp and clip.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source
from edgevlm_convert.metadata import Value, string
from edgevlm_convert.rules import Rule, Split
from edgevlm_convert.towers.qwen import (
    N_MERGED,
    check_qwen_tower,
    epsilon_metadata,
    patch_rules,
    read_n_out,
)
from edgevlm_convert.towers.vision import TowerSizes, pair, size_metadata

# Of the configuration. The image's side is what llama.cpp's converter writes; the graph takes any.
DEFAULTS: Mapping[str, object] = {
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "image_size": 560,
}


def check_qwen2_tower(vision: Section, sizes: TowerSizes, *, n_ff_key: str) -> None:
    """Refuse what the graph computes in one way only, when the config asks for another.

    Raises:
        CheckpointError: such a value.
    """
    check_qwen_tower(vision, sizes)
    if sizes.n_ff == sizes.n_embd:
        vision.fail(
            n_ff_key,
            f"a feed-forward width other than the tower's {sizes.n_embd}: llama.cpp takes a square"
            " one for an old file whose matrices stand in each other's place",
        )


def build_qwen2_tower(
    source: Source,
    sizes: TowerSizes,
    *,
    projector_type: str,
    n_out_key: str,
    norm_bias: bool,
    mlp: Mapping[str, str],
    metadata: Mapping[str, Value],
    joined: bool = True,
) -> Part:
    """Return rules and metadata of the mmproj file.

    Args:
        source: the checkpoint's configuration.
        sizes: of the tower.
        projector_type: llama.cpp's name.
        n_out_key: of the text model's width in the tower's configuration.
        norm_bias: whether norms have one (LayerNorm) or not (RMSNorm).
        mlp: names in the file by those in the checkpoint, of a block's feed-forward network.
        metadata: keys between the projector's type and the epsilon.
        joined: whether query, key and value are one matrix in the checkpoint.

    Raises:
        CheckpointError: the tower's width is not the text model's.
    """
    prefix = source.prefixes.vision
    n_embd, merged = sizes.n_embd, N_MERGED * sizes.n_embd
    n_out = read_n_out(source, n_out_key)
    rules = patch_rules(prefix, sizes, bias=False)
    for layer in range(sizes.n_layers):
        block, target = f"{prefix}blocks.{layer}.", f"v.blk.{layer}."
        rules += pair(f"{block}norm1", f"{target}ln1", (n_embd,), bias=norm_bias)
        rules += _attention_rules(f"{block}attn.", target, n_embd, joined=joined)
        rules += pair(f"{block}norm2", f"{target}ln2", (n_embd,), bias=norm_bias)
        for name, to in mlp.items():
            shape = (n_embd, sizes.n_ff) if to == "ffn_down" else (sizes.n_ff, n_embd)
            rules += pair(f"{block}mlp.{name}", f"{target}{to}", shape)
    rules += pair(f"{prefix}merger.ln_q", "v.post_ln", (n_embd,), bias=norm_bias)
    rules += pair(f"{prefix}merger.mlp.0", "mm.0", (merged, merged))
    rules += pair(f"{prefix}merger.mlp.2", "mm.2", (n_out, merged))
    return Part(
        rules=tuple(rules),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(projector_type),
            **metadata,
            **epsilon_metadata(),
        },
    )


def _attention_rules(source: str, target: str, n_embd: int, *, joined: bool) -> list[Rule]:
    """Return the rules of one block's attention: the graph wants query, key and value apart."""
    output = pair(f"{source}proj", f"{target}attn_out", (n_embd, n_embd))
    if not joined:
        apart = (
            pair(f"{source}{letter}", f"{target}attn_{letter}", (n_embd, n_embd))
            for letter in "qkv"
        )
        return [*chain.from_iterable(apart), *output]
    shapes = {"weight": (3 * n_embd, n_embd), "bias": (3 * n_embd,)}
    return [
        *(
            Split(
                source=f"{source}qkv.{kind}",
                targets=tuple(f"{target}attn_{letter}.{kind}" for letter in "qkv"),
                shape=shape,
                axis=0,
            )
            for kind, shape in shapes.items()
        ),
        *output,
    ]
