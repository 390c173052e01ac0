"""SAM's ViT as DeepSeek-OCR has it before a second encoder: windows, relative positions, a neck.

Facts: names from gguf-py tensor_mapping.py; what the graph fixes from tools/mtmd/models/
deepseekocr.cpp (`build_sam`) and clip-model.h (`global_attn_indices`); both namings of a checkpoint
from transformers' conversion_mapping.py, sizes from its `DeepseekOcr2SamVisionConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Source
from edgevlm_convert.metadata import Value, u32
from edgevlm_convert.rules import Precision, Rename, Rule
from edgevlm_convert.shape_rules import Reshaped
from edgevlm_convert.towers.vision import pair

IMAGE_SIZE, PATCH = 1024, 16
# Layers that look at the whole image, not at windows; the graph knows no others.
_GLOBAL = (2, 5, 8, 11)
_EPSILON = 1e-6
_DEFAULTS = {
    "hidden_size": 768,
    "output_channels": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4.0,
    "window_size": 14,
    "global_attn_indexes": list(_GLOBAL),
}
# DeepSeek's own classes -> transformers'.
_NEW_NAMES = {
    "blocks.": "layers.",
    ".norm1": ".layer_norm1",
    ".norm2": ".layer_norm2",
    "patch_embed.proj": "patch_embed.projection",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "net_2": "proj.conv1",
    "net_3": "proj.conv2",
}
_OLD, _NEW = "sam_model.", "vision_tower.sam_encoder."


@dataclass(frozen=True, kw_only=True)
class SamSizes:
    """The numbers that shapes depend on.

    Attributes:
        n_layers: blocks.
        n_embd: width.
        n_ff: width inside a feed-forward network.
        n_head: attention heads.
        window: side of a window in patches.
        channels: of the neck, behind its first stride, and behind its second.
    """

    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    window: int
    channels: tuple[int, int, int]


def uses_new_names(source: Source) -> bool:
    """Return whether the tower is named as transformers' class has it, not as it saves it."""
    return any(_NEW in name for name in source.shapes)


def read_sam(sam: Section, n_out: int) -> SamSizes:
    """Return the sizes of a tower as transformers' configuration has them.

    Args:
        sam: its section.
        n_out: width of the encoder behind it.

    Raises:
        CheckpointError: a key is of wrong type, absurd, or one that the graph ignores.
    """
    sam = sam.with_defaults(_DEFAULTS)
    for key, value in (("image_size", IMAGE_SIZE), ("patch_size", PATCH), ("num_channels", 3)):
        sam.require(key, (value,), default=value)
    for key in ("qkv_bias", "use_abs_pos", "use_rel_pos"):
        sam.require(key, (True,), default=True)
    sam.require("hidden_act", ("gelu",), default="gelu")
    sam.require("layer_norm_eps", (_EPSILON,), default=_EPSILON)
    n_embd = sam.integer("hidden_size", low=1, high=MAX_WIDTH)
    ratio = sam.number("mlp_ratio", low=1 / n_embd, high=64)
    default = [2 * sam.integer("output_channels", low=1, high=MAX_WIDTH), n_out]
    key = "downsample_channels"
    strides = sam.integers(key, low=1, high=MAX_WIDTH, max_length=2) if sam.has(key) else default
    if strides[1:] != [n_out]:
        sam.fail(key, f"two numbers, the second {n_out}: the width of the encoder behind it")
    return _checked(
        sam,
        SamSizes(
            n_layers=sam.integer("num_hidden_layers", low=1, high=MAX_LAYERS),
            n_embd=n_embd,
            n_ff=sam.integer("mlp_dim", low=1, high=MAX_WIDTH, default=int(n_embd * ratio)),
            n_head=sam.integer("num_attention_heads", low=1, high=MAX_HEADS),
            window=sam.integer("window_size", low=1, high=IMAGE_SIZE // PATCH),
            channels=(default[0] // 2, strides[0], n_out),
        ),
        heads="num_attention_heads",
    )


def read_old_sam(source: Source, sam: Section, n_out: int) -> SamSizes:
    """Return the sizes of a tower as DeepSeek's own configuration has them.

    It names three numbers, the class fixes the others; what a tower of another size has is seen in
    its tensors.

    Args:
        source: of the model.
        sam: `vision_config.width.sam_vit_b`.
        n_out: width of the encoder behind it.

    Raises:
        CheckpointError: as `read_sam`.
    """
    sam = sam.with_defaults({"global_attn_indexes": list(_GLOBAL), "window_size": 14})
    n_embd = sam.integer("width", low=1, high=MAX_WIDTH, default=768)

    def rows(name: str, usual: int) -> int:
        return source.shapes.get(f"model.{_OLD}{name}.weight", (usual,))[0]

    return _checked(
        sam,
        SamSizes(
            n_layers=sam.integer("layers", low=1, high=MAX_LAYERS, default=12),
            n_embd=n_embd,
            n_ff=rows("blocks.0.mlp.lin1", 4 * n_embd),
            n_head=sam.integer("heads", low=1, high=MAX_HEADS, default=12),
            window=sam.integer("window_size", low=1, high=IMAGE_SIZE // PATCH),
            channels=(rows("neck.0", 256), rows("net_2", 512), n_out),
        ),
        heads="heads",
    )


def _checked(sam: Section, sizes: SamSizes, *, heads: str) -> SamSizes:
    if sizes.n_embd % sizes.n_head:
        sam.fail(heads, f"a divisor of the width {sizes.n_embd}")
    key = "global_attn_indexes"
    wanted = [layer for layer in _GLOBAL if layer < sizes.n_layers]
    if sam.integers(key, low=0, high=MAX_LAYERS, max_length=len(_GLOBAL)) != wanted:
        sam.fail(key, f"{wanted}: llama.cpp knows no other layers that see the whole image")
    return sizes


def sam_metadata(sizes: SamSizes) -> dict[str, Value]:
    """Return the keys of the tower."""
    return {
        "clip.vision.sam.block_count": u32(sizes.n_layers),
        "clip.vision.sam.embedding_length": u32(sizes.n_embd),
        "clip.vision.sam.head_count": u32(sizes.n_head),
    }


def sam_rules(source: Source, sizes: SamSizes) -> list[Rule]:
    """Return the rules of the whole tower."""
    side, n_embd = IMAGE_SIZE // PATCH, sizes.n_embd
    first, second, last = sizes.channels
    rules: list[Rule] = [
        Rename(
            source=_named(source, "pos_embed"),
            target="v.sam.pos_embd.weight",
            shape=(1, side, side, n_embd),
            precision="f32",
        ),
        *_kernel(source, "patch_embed.proj", "patch_embd", (n_embd, 3, PATCH, PATCH)),
        Rename(
            source=_named(source, "patch_embed.proj.bias"),
            target="v.sam.patch_embd.bias",
            shape=(n_embd,),
        ),
        *_kernel(source, "neck.0", "neck.0", (first, n_embd, 1, 1), "f32"),
        *_kernel(source, "neck.2", "neck.2", (first, first, 3, 3), "f32"),
        *_kernel(source, "net_2", "net_2", (second, first, 3, 3), "f32"),
        *_kernel(source, "net_3", "net_3", (last, second, 3, 3), "f32"),
    ]
    for norm in ("neck.1", "neck.3"):
        rules += pair(_named(source, norm), f"v.sam.{norm}", (first,))
    for layer in range(sizes.n_layers):
        rules += _block_rules(source, sizes, layer)
    return rules


def _block_rules(source: Source, sizes: SamSizes, layer: int) -> list[Rule]:
    stem, target = f"blocks.{layer}.", f"v.sam.blk.{layer}."
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    side = IMAGE_SIZE // PATCH if layer in _GLOBAL else sizes.window
    shapes = {
        "norm1": ("pre_ln", (n_embd,)),
        "attn.qkv": ("attn.qkv", (3 * n_embd, n_embd)),
        "attn.proj": ("attn.out", (n_embd, n_embd)),
        "norm2": ("post_ln", (n_embd,)),
        "mlp.lin1": ("mlp.lin1", (n_ff, n_embd)),
        "mlp.lin2": ("mlp.lin2", (n_embd, n_ff)),
    }
    rules: list[Rule] = [
        rule
        for name, (to, shape) in shapes.items()
        for rule in pair(_named(source, f"{stem}{name}"), f"{target}{to}", shape)
    ]
    for letter in "hw":
        rules.append(
            Rename(
                source=_named(source, f"{stem}attn.rel_pos_{letter}"),
                target=f"{target}attn.pos_{letter}.weight",
                shape=(2 * side - 1, n_embd // sizes.n_head),
                precision="f32",
            )
        )
    return rules


def _kernel(
    source: Source,
    name: str,
    target: str,
    shape: tuple[int, ...],
    precision: Precision = "f16 or f32",
) -> list[Rule]:
    return [
        Rename(
            source=f"{_named(source, name)}.weight",
            target=f"v.sam.{target}.weight",
            shape=shape,
            precision=precision,
        )
    ]


def _named(source: Source, name: str) -> str:
    """Return a tensor's name in the checkpoint by DeepSeek's own, without what it begins with."""
    if not uses_new_names(source):
        return f"model.{_OLD}{name}"
    for old, new in _NEW_NAMES.items():
        name = name.replace(old, new)
    return f"model.{_NEW}{name}"


def separator_rule(source: Source, n_text: int) -> Rule:
    """Return the rule of the vector behind the whole image, a matrix of one row in the file."""
    name = "view_separator" if uses_new_names(source) else "view_seperator"
    vector = Rename(source=f"model.{name}", target="v.view_seperator", shape=(n_text,))
    return Reshaped(rule=vector, shape=(1, n_text))
