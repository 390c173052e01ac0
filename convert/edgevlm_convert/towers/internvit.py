"""InternViT, InternVL's vision tower, under both of its names: OpenGVLab's own and transformers'.

Facts: names in a file from gguf-py tensor_mapping.py and tools/mtmd/clip-impl.h; what the graph
fixes from tools/mtmd/models/internvl.cpp and `build_vit` of tools/mtmd/clip.cpp; config keys and
defaults from transformers' `InternVLVisionConfig` and OpenGVLab's configuration_intern_vit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgevlm_convert.config import Section
from edgevlm_convert.rules import Drop, Rename, Rule, Split, Transform
from edgevlm_convert.towers.vision import TowerSizes, pair
from edgevlm_convert.towers.vit import read_vit
from edgevlm_convert.transforms import rotated_rows

# The graph takes RMS norms for a tower of exactly this width and depth, layer norms for all others.
_LARGE = (3200, 45)
_RMS, _LAYER = "rms_norm", "layer_norm"


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a class calls the tower's config keys and tensors.

    Attributes:
        defaults: of the class's config keys.
        qkv_bias, qk_norm: config keys.
        joined: whether query, key and value are one matrix.
        layers: what the names of the blocks begin with, behind the tower's prefix.
        class_token, positions, patches: embeddings.
        blocks: name in the file by name in the checkpoint, of what has a weight and a bias.
        qk: the same of query, key and value, and of the norms of the first two.
        scales: name in the file by name in the checkpoint, of what each half of a block is
            multiplied by.
    """

    defaults: Mapping[str, object]
    qkv_bias: str
    qk_norm: str
    joined: bool
    layers: str
    class_token: str
    positions: str
    patches: str
    blocks: Mapping[str, str]
    qk: str
    scales: Mapping[str, str]


_MLP = {"mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
TRANSFORMERS = Naming(
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "norm_type": _LAYER,
    },
    qkv_bias="attention_bias",
    qk_norm="use_qk_norm",
    joined=False,
    layers="encoder.layer.",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    blocks={
        "layernorm_before": "ln1",
        "layernorm_after": "ln2",
        "attention.projection_layer": "attn_out",
        **_MLP,
    },
    qk="attention.",
    scales={"lambda_1": "ls1", "lambda_2": "ls2"},
)
OPENGVLAB = Naming(
    defaults={
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 48,
        "num_attention_heads": 25,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "norm_type": _RMS,
        "qk_normalization": True,
    },
    qkv_bias="qkv_bias",
    qk_norm="qk_normalization",
    joined=True,
    layers="encoder.layers.",
    class_token="embeddings.class_embedding",
    positions="embeddings.position_embedding",
    patches="embeddings.patch_embedding",
    blocks={"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn_out", **_MLP},
    qk="attn.",
    scales={"ls1": "ls1", "ls2": "ls2"},
)
# transformers' keys over OpenGVLab's tensors, which the class writes as it reads them.
QIANFAN = replace(
    OPENGVLAB,
    defaults={**TRANSFORMERS.defaults, "attention_bias": True},
    qkv_bias=TRANSFORMERS.qkv_bias,
    qk_norm=TRANSFORMERS.qk_norm,
)


def read_internvit(vision: Section, naming: Naming) -> tuple[Section, TowerSizes]:
    """Return the tower's configuration with defaults, its sides as plain numbers, and its sizes.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = vision.with_defaults(naming.defaults)
    vision = vision.with_values({key: _side(vision, key) for key in ("image_size", "patch_size")})
    sizes = read_vit(vision)
    is_large = (sizes.n_embd, sizes.n_layers) == _LARGE
    norm = _RMS if is_large else _LAYER
    if vision.text("norm_type") != norm:
        vision.fail("norm_type", f"{norm!r}: llama.cpp tells by width and depth of the tower")
    if vision.boolean(naming.qk_norm, default=False) and not is_large:
        vision.fail(naming.qk_norm, "false: llama.cpp has no RMS norm in a tower of this size")
    vision.require("use_mean_pooling", (True,), default=True)
    vision.require("use_absolute_position_embeddings", (True,), default=True)
    return vision, sizes


def _side(vision: Section, key: str) -> int:
    """Return a side in pixels that is written as a number, or as two equal ones."""
    if not isinstance(vision.raw(key), list):
        return vision.integer(key, low=1, high=1 << 16)
    sides = vision.integers(key, low=1, high=1 << 16, max_length=2)
    if len(sides) != 2 or len(set(sides)) != 1:
        vision.fail(key, "two equal sides")
    return sides[0]


def internvit_rules(
    prefix: str, vision: Section, sizes: TowerSizes, naming: Naming, *, class_token_first: bool
) -> list[Rule]:
    """Return the rules of the whole tower.

    Args:
        prefix: of its tensors.
        vision: its configuration, with defaults.
        sizes: of it.
        naming: of its class.
        class_token_first: whether the graph puts the class token before the patches.
    """
    rules = _embedding_rules(prefix, sizes, naming, class_token_first=class_token_first)
    is_large = vision.text("norm_type") == _RMS
    qkv_bias = vision.boolean(naming.qkv_bias, default=False)
    qk_norm = vision.boolean(naming.qk_norm, default=False)
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    shapes = {"ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff), "attn_out": (n_embd, n_embd)}
    for layer in range(sizes.n_layers):
        source, target = f"{prefix}{naming.layers}{layer}.", f"v.blk.{layer}."
        for name, to in naming.blocks.items():
            # RMS norms alone have no bias.
            bias = to in shapes or not is_large
            shape = shapes.get(to, (n_embd,))
            rules += pair(f"{source}{name}", f"{target}{to}", shape, bias=bias)
        attention = f"{source}{naming.qk}"
        rules += _query_rules(attention, target, n_embd, bias=qkv_bias, joined=naming.joined)
        for letter in "qk" if qk_norm else "":
            rules += pair(
                f"{attention}{letter}_norm", f"{target}attn_{letter}_norm", (n_embd,), bias=False
            )
        rules += [
            Rename(source=f"{source}{name}", target=f"{target}{to}.weight", shape=(n_embd,))
            for name, to in naming.scales.items()
        ]
    return rules


def _embedding_rules(
    prefix: str, sizes: TowerSizes, naming: Naming, *, class_token_first: bool
) -> list[Rule]:
    """Return the rules of patches, class token and positions; row 0 of these is the token's."""
    n_rows, n_embd = sizes.n_patches + 1, sizes.n_embd
    patch = f"{prefix}{naming.patches}"
    return [
        Rename(
            source=f"{patch}.weight",
            target="v.patch_embd.weight",
            shape=(n_embd, 3, sizes.patch_size, sizes.patch_size),
            precision="f16 or f32",
        ),
        Rename(source=f"{patch}.bias", target="v.patch_embd.bias", shape=(n_embd,)),
        Rename(source=f"{prefix}{naming.class_token}", target="v.class_embd", shape=(1, 1, n_embd)),
        Transform(
            source=f"{prefix}{naming.positions}",
            target="v.position_embd.weight",
            shape=(1, n_rows, n_embd),
            precision="f32",
            # Where the graph puts the token behind the patches, its row must be the file's last.
            rows=rotated_rows(n_rows, 0 if class_token_first else 1),
        ),
        Drop(
            source=f"{prefix}embeddings.mask_token",
            reason="stands for masked patches while the tower is trained",
        ),
    ]


def _query_rules(source: str, target: str, n_embd: int, *, bias: bool, joined: bool) -> list[Rule]:
    if not joined:
        return [
            rule
            for letter in "qkv"
            for rule in pair(
                f"{source}{letter}_proj", f"{target}attn_{letter}", (n_embd, n_embd), bias=bias
            )
        ]
    shapes = {"weight": (3 * n_embd, n_embd), **({"bias": (3 * n_embd,)} if bias else {})}
    return [
        Split(
            source=f"{source}qkv.{kind}",
            targets=tuple(f"{target}attn_{letter}.{kind}" for letter in "qkv"),
            shape=shape,
            axis=0,
        )
        for kind, shape in shapes.items()
    ]
