"""The plain ViT of CLIP and SigLIP, with learned positions and norms before each half of a block.

Facts: names from gguf-py constants.py and tools/mtmd/clip-impl.h; defaults from transformers'
`SiglipVisionConfig` and `CLIPVisionConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.config import Section
from edgevlm_convert.metadata import Value, boolean
from edgevlm_convert.rules import Drop, Precision, Rename, Rule, Transform
from edgevlm_convert.towers.vision import TowerSizes, pair, read_image_size, read_tower
from edgevlm_convert.transforms import rotated_rows

SIGLIP_DEFAULTS: Mapping[str, object] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
CLIP_DEFAULTS: Mapping[str, object] = {
    **SIGLIP_DEFAULTS,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# ggml computes both with the tanh formula, from a table in half precision: below 4e-6 KLD apart.
_GELU = ("gelu_pytorch_tanh", "gelu")


def read_vit(
    vision: Section, *, image_size: int | None = None, n_ff: int | None = None
) -> TowerSizes:
    """Return the sizes of a tower of this kind.

    Args:
        vision: its configuration, with the class's defaults.
        image_size: side of the image in pixels, None: what `image_size` says.
        n_ff: width inside a feed-forward network, None: what `intermediate_size` says.

    Raises:
        CheckpointError: a size is missing, absurd, or does not go with another.
    """
    vision.require("num_channels", (3,), default=3)
    sizes = read_tower(
        vision,
        layers="num_hidden_layers",
        heads="num_attention_heads",
        image_size=image_size or read_image_size(vision),
        n_ff=n_ff,
    )
    if sizes.n_ff == sizes.n_embd:
        # tools/mtmd/clip.cpp tells old files, with both names exchanged, by their shapes.
        vision.fail(
            "intermediate_size",
            f"another number than the hidden size {sizes.n_embd}: llama.cpp takes a square"
            " feed-forward network for one whose matrices are exchanged",
        )
    return sizes


def activation_metadata(vision: Section) -> dict[str, Value]:
    """Return the key that names the activation; quick-gelu is what llama.cpp takes without one.

    Raises:
        CheckpointError: an activation that llama.cpp does not compute in this tower.
    """
    name = vision.text("hidden_act", default="gelu_pytorch_tanh")
    if name == "quick_gelu":
        return {}
    if name == "silu":
        return {"clip.use_silu": boolean(True)}
    if name not in _GELU:
        vision.fail("hidden_act", "gelu, gelu_pytorch_tanh, quick_gelu or silu")
    return {"clip.use_gelu": boolean(True)}


def embedding_rules(
    prefix: str, sizes: TowerSizes, *, bias: bool = True, precision: Precision = "f16 or f32"
) -> list[Rule]:
    """Return the rules of patches and positions of a tower without class token.

    Args:
        prefix: of the tower's tensors.
        sizes: of the tower.
        bias: whether the patch kernel has one (SigLIP) or not (CLIP).
        precision: of the patch kernel.
    """
    return [
        *_patch_rules(prefix, sizes, bias=bias, precision=precision),
        Rename(
            source=f"{prefix}embeddings.position_embedding.weight",
            target="v.position_embd.weight",
            shape=(sizes.n_patches, sizes.n_embd),
            precision="f32",
        ),
    ]


def class_token_rules(prefix: str, sizes: TowerSizes, *, first: bool) -> list[Rule]:
    """Return the rules of patches, class token and positions of CLIP.

    Row 0 of the position table is the class token's. Where the graph puts that token behind the
    patches (tools/mtmd/models/llava.cpp), its row must be the last one of the file.

    Args:
        prefix: of the tower's tensors.
        sizes: of the tower.
        first: whether the graph puts the class token before the patches.
    """
    positions = f"{prefix}embeddings.position_embedding.weight"
    target = "v.position_embd.weight"
    n_rows = sizes.n_patches + 1
    shape = (n_rows, sizes.n_embd)
    table: Rule = Rename(source=positions, target=target, shape=shape, precision="f32")
    if not first:
        table = Transform(
            source=positions,
            target=target,
            shape=shape,
            precision="f32",
            rows=rotated_rows(n_rows, 1),
        )
    return [
        *_patch_rules(prefix, sizes, bias=False, precision="f16 or f32"),
        Rename(
            source=f"{prefix}embeddings.class_embedding",
            target="v.class_embd",
            shape=(sizes.n_embd,),
        ),
        table,
    ]


def _patch_rules(prefix: str, sizes: TowerSizes, *, bias: bool, precision: Precision) -> list[Rule]:
    patch = f"{prefix}embeddings.patch_embedding"
    rules: list[Rule] = [
        Rename(
            source=f"{patch}.weight",
            target="v.patch_embd.weight",
            shape=(sizes.n_embd, 3, sizes.patch_size, sizes.patch_size),
            precision=precision,
        )
    ]
    if bias:
        rules.append(
            Rename(source=f"{patch}.bias", target="v.patch_embd.bias", shape=(sizes.n_embd,))
        )
    # A buffer that transformers 4.30 and older saved.
    rules.append(
        Drop(source=f"{prefix}embeddings.position_ids", reason="numbers the positions 0, 1, 2 ...")
    )
    return rules


def block_rules(
    prefix: str, sizes: TowerSizes, *, output: str = "out_proj", qkv_bias: bool = True
) -> list[Rule]:
    """Return the rules of all blocks.

    Args:
        prefix: of the tower's tensors.
        sizes: of the tower.
        output: what the last matrix of attention is called.
        qkv_bias: whether the others have biases.
    """
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    rules: list[Rule] = []
    for layer in range(sizes.n_layers):
        source, target = f"{prefix}encoder.layers.{layer}.", f"v.blk.{layer}."
        rules += pair(f"{source}layer_norm1", f"{target}ln1", (n_embd,))
        for name in "qkv":
            rules += pair(
                f"{source}self_attn.{name}_proj",
                f"{target}attn_{name}",
                (n_embd, n_embd),
                bias=qkv_bias,
            )
        rules += pair(f"{source}self_attn.{output}", f"{target}attn_out", (n_embd, n_embd))
        rules += pair(f"{source}layer_norm2", f"{target}ln2", (n_embd,))
        rules += pair(f"{source}mlp.fc1", f"{target}ffn_up", (n_ff, n_embd))
        rules += pair(f"{source}mlp.fc2", f"{target}ffn_down", (n_embd, n_ff))
    return rules


def unread_rules(prefix: str, sizes: TowerSizes, n_read: int) -> list[Rule]:
    """Return the rules of what stands behind the blocks that the projector reads.

    Args:
        prefix: of the tower's tensors.
        sizes: of the whole tower.
        n_read: blocks that the projector reads.
    """
    read = block_rules(prefix, replace(sizes, n_layers=n_read))
    unread = block_rules(prefix, sizes)[len(read) :]
    reason = f"behind block {n_read} of {sizes.n_layers}, the last that the projector reads"
    names = [name for rule in unread for name in rule.shapes]
    last_norm = [name for rule in last_norm_rules(prefix, sizes.n_embd) for name in rule.shapes]
    return [
        *(Drop(source=name, reason=reason, required=True) for name in names),
        *(Drop(source=name, reason=reason) for name in last_norm),
    ]


def first_norm_rules(prefix: str, n_embd: int) -> list[Rule]:
    """Return the rules of the norm before the first block, which CLIP has and spells so."""
    return pair(f"{prefix}pre_layrnorm", "v.pre_ln", (n_embd,))


def last_norm_rules(prefix: str, n_embd: int) -> list[Rule]:
    """Return the rules of the norm behind the last block."""
    return pair(f"{prefix}post_layernorm", "v.post_ln", (n_embd,))


def dropped_head_rules(prefix: str) -> list[Rule]:
    """Return the rules of SigLIP's pooling head, which no VLM uses."""
    reason = "SigLIP's pooling head; the language model reads the patches"
    names = ["probe"]
    names += [f"attention.in_proj_{kind}" for kind in ("weight", "bias")]
    for layer in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2"):
        names += [f"{layer}.weight", f"{layer}.bias"]
    return [Drop(source=f"{prefix}head.{name}", reason=reason) for name in names]
