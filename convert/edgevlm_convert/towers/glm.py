"""The tower of GLM-4.1V and GLM-OCR: Qwen-VL's patches, RMS norms, merged by a convolution.

Facts: tensor names and metadata from llama.cpp conversion/qwen3vl.py (`Glm4VVisionModel`),
gguf-py/gguf/tensor_mapping.py; what the graph fixes from tools/mtmd/models/glm4v.cpp and clip.cpp;
widths and biases from transformers' modeling_glm4v.py and modeling_glm_ocr.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source
from edgevlm_convert.metadata import Value, boolean, f32, string, u32
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.towers.qwen import check_qwen_tower, patch_rules
from edgevlm_convert.towers.vision import (
    TowerSizes,
    pair,
    read_image_size,
    read_tower,
    size_metadata,
)

PROJECTOR_TYPE = "glm4v"
_MERGE, _FRAMES = 2, 2
_BICUBIC = 3
# Of an image: far above what models publish, 6144.
_MAX_TOKENS = 1 << 16
# Of `Glm4vImageProcessor`, in pixels of all frames.
_USUAL_SIZE = {"shortest_edge": 112 * 112, "longest_edge": 15000 * 28 * 28}


@dataclass(frozen=True, kw_only=True)
class GlmTower:
    """What the shapes of a tower depend on, where the classes differ.

    Attributes:
        sizes: of the tower; its `n_ff` is what the header names, whatever it is the width of.
        n_out: width of the text model.
        n_ff: width inside a block's feed-forward network.
        n_merged: width inside the merger's.
        qkv_bias: whether queries, keys and values have one.
        block_bias: whether the block's other matrices have one.
        head_norms: whether each query and key head is normalized.
        learned_positions: whether there are a norm behind the patches and a table of positions.
    """

    sizes: TowerSizes
    n_out: int
    n_ff: int
    n_merged: int
    qkv_bias: bool
    block_bias: bool
    head_norms: bool
    learned_positions: bool


def read_glm_sizes(vision: Section) -> TowerSizes:
    """Return the sizes of a tower from its section, with the class's defaults.

    Raises:
        CheckpointError: a size is missing, absurd, or one that the graph ignores.
    """
    vision.require("hidden_act", ("silu",), default="silu")
    sizes = read_tower(
        vision, layers="depth", heads="num_heads", image_size=read_image_size(vision)
    )
    check_qwen_tower(vision, sizes)
    return sizes


def build_glm_tower(source: Source, vision: Section, tower: GlmTower) -> Part:
    """Return rules and metadata of the mmproj file.

    Args:
        source: of the model.
        vision: the tower's section, with the class's defaults.
        tower: what was read of it.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    prefix, sizes = source.prefixes.vision, tower.sizes
    rules = patch_rules(prefix, sizes, bias=True)
    if tower.learned_positions:
        rules += _position_rules(prefix, sizes)
    for layer in range(sizes.n_layers):
        rules += _block_rules(f"{prefix}blocks.{layer}.", f"v.blk.{layer}.", tower)
    rules += pair(f"{prefix}post_layernorm", "v.post_ln", (sizes.n_embd,), bias=False)
    rules += _merger_rules(prefix, sizes.n_embd, tower.n_out, tower.n_merged)
    epsilon = vision.number("rms_norm_eps", low=1e-12, high=1.0)
    return Part(
        rules=tuple(rules),
        late_metadata={
            **size_metadata(source, sizes),
            **_bounds(source.preprocessor, sizes.patch_size),
            "clip.projector_type": string(PROJECTOR_TYPE),
            "clip.use_silu": boolean(True),
            "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
        },
    )


def _bounds(preprocessor: Section, patch_size: int) -> dict[str, Value]:
    """Return the pixels that an image is stretched to; llama.cpp's own limits are others.

    transformers counts those of two frames, of which a still image has two alike.

    Raises:
        CheckpointError: bounds that are absurd, or settings that the runtime does not have.
    """
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    preprocessor.require("patch_size", (patch_size,), default=patch_size)
    preprocessor.require("merge_size", (_MERGE,), default=_MERGE)
    preprocessor.require("temporal_patch_size", (_FRAMES,), default=_FRAMES)
    # Of the class that shares GLM-4.6V's name (`GlmgaImageProcessor`).
    preprocessor.require("patch_expand_factor", (1,), default=1)
    area = (patch_size * _MERGE) ** 2
    key = "size"
    size = preprocessor.section(key) if preprocessor.has(key) else preprocessor.empty(key)
    size = size.with_defaults(_USUAL_SIZE)
    longest = size.integer("longest_edge", low=_FRAMES * area, high=_FRAMES * _MAX_TOKENS * area)
    shortest = size.integer("shortest_edge", low=1, high=longest)
    return {
        "clip.vision.image_min_pixels": u32(-(-shortest // _FRAMES)),
        "clip.vision.image_max_pixels": u32(longest // _FRAMES),
    }


def _position_rules(prefix: str, sizes: TowerSizes) -> list[Rule]:
    return [
        *pair(f"{prefix}post_conv_layernorm", "v.norm_embd", (sizes.n_embd,), bias=False),
        Rename(
            source=f"{prefix}embeddings.position_embedding.weight",
            target="v.position_embd.weight",
            shape=(sizes.n_patches, sizes.n_embd),
            # Interpolated at run time, in float32 only.
            precision="f32",
        ),
    ]


def _block_rules(source: str, target: str, tower: GlmTower) -> list[Rule]:
    n_embd, n_ff, bias = tower.sizes.n_embd, tower.n_ff, tower.block_bias
    rules = [
        *pair(f"{source}norm1", f"{target}ln1", (n_embd,), bias=False),
        *pair(f"{source}attn.qkv", f"{target}attn_qkv", (3 * n_embd, n_embd), bias=tower.qkv_bias),
        *pair(f"{source}attn.proj", f"{target}attn_out", (n_embd, n_embd), bias=bias),
        *pair(f"{source}norm2", f"{target}ln2", (n_embd,), bias=False),
        *pair(f"{source}mlp.gate_proj", f"{target}ffn_gate", (n_ff, n_embd), bias=bias),
        *pair(f"{source}mlp.up_proj", f"{target}ffn_up", (n_ff, n_embd), bias=bias),
        *pair(f"{source}mlp.down_proj", f"{target}ffn_down", (n_embd, n_ff), bias=bias),
    ]
    if tower.head_norms:
        width = (n_embd // tower.sizes.n_head,)
        for letter in "qk":
            norm = f"{source}attn.{letter}_norm", f"{target}attn_{letter}_norm"
            rules += pair(*norm, width, bias=False)
    return rules


def _merger_rules(prefix: str, n_embd: int, n_out: int, n_merged: int) -> list[Rule]:
    """Return the rules of what makes one token of 2 x 2 patches."""
    kernel, merger = "mm.patch_merger", f"{prefix}merger."
    return [
        Rename(
            source=f"{prefix}downsample.weight",
            target=f"{kernel}.weight",
            shape=(n_out, n_embd, _MERGE, _MERGE),
            # A kernel of ggml's convolution, like that of the patches.
            precision="f16 or f32",
        ),
        Rename(source=f"{prefix}downsample.bias", target=f"{kernel}.bias", shape=(n_out,)),
        *pair(f"{merger}proj", "mm.model.fc", (n_out, n_out), bias=False),
        *pair(f"{merger}post_projection_norm", "mm.post_norm", (n_out,)),
        *pair(f"{merger}gate_proj", "mm.gate", (n_merged, n_out), bias=False),
        *pair(f"{merger}up_proj", "mm.up", (n_merged, n_out), bias=False),
        *pair(f"{merger}down_proj", "mm.down", (n_out, n_merged), bias=False),
    ]
