"""Qwen3-VL, dense: a ViT with deepstack, joined to Qwen3.

Facts: tensor names and metadata from llama.cpp conversion/qwen3vl.py and tools/mtmd/clip-impl.h;
what the graph fixes (merge of 2 x 2 patches, two frames per patch, rotary base 10000) from
tools/mtmd/models/qwen3vl.cpp; config keys from transformers' `Qwen3VLVisionConfig`.
"""

from __future__ import annotations

import math

from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector
from edgevlm_convert.metadata import Value, array, boolean, f32, string, u32
from edgevlm_convert.rules import Rename, Rule, Split
from edgevlm_convert.text.qwen3 import QWEN3_VL

_PROJECTOR_TYPE = "qwen3vl_merger"
_N_MERGED = 4
_N_FRAMES = 2


def build_vision(config: Section, preprocessor: Section, prefix: str) -> Part:
    """Return rules and metadata of the mmproj file.

    Args:
        config: config.json.
        preprocessor: preprocessor_config.json or the image part of processor_config.json.
        prefix: of the tensors, `model.visual.`.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = config.section("vision_config")
    n_layers = vision.integer("depth", low=1, high=MAX_LAYERS)
    n_embd = vision.integer("hidden_size", low=1, high=MAX_WIDTH)
    n_ff = vision.integer("intermediate_size", low=1, high=MAX_WIDTH)
    n_head = vision.integer("num_heads", low=1, high=MAX_HEADS)
    patch_size = vision.integer("patch_size", low=1, high=256)
    n_positions = vision.integer("num_position_embeddings", low=1, high=1 << 20)
    _check_fixed(vision, preprocessor, n_embd, n_head, n_positions)
    n_out = config.section("text_config").integer("hidden_size", low=1, high=MAX_WIDTH)
    if vision.integer("out_hidden_size", low=1, high=MAX_WIDTH) != n_out:
        vision.fail("out_hidden_size", f"the text model's hidden_size {n_out}")
    deepstack = vision.integers(
        "deepstack_visual_indexes", low=0, high=n_layers - 1, max_length=n_layers
    )
    if len(set(deepstack)) != len(deepstack):
        vision.fail("deepstack_visual_indexes", "each layer once")
    rules: list[Rule] = _embedding_rules(prefix, n_embd, patch_size, n_positions)
    for layer in range(n_layers):
        rules += _block_rules(f"{prefix}blocks.{layer}.", f"v.blk.{layer}.", n_embd, n_ff)
    for number, layer in enumerate(deepstack):
        # The checkpoint numbers the mergers, the file names the layer each one reads.
        rules += _merger_rules(
            f"{prefix}deepstack_merger_list.{number}.",
            (f"v.deepstack.{layer}.norm", f"v.deepstack.{layer}.fc1", f"v.deepstack.{layer}.fc2"),
            n_embd,
            n_out,
            n_norm=_N_MERGED * n_embd,
        )
    rules += _merger_rules(
        f"{prefix}merger.", ("v.post_ln", "mm.0", "mm.2"), n_embd, n_out, n_norm=n_embd
    )
    metadata = {
        **_sizes(vision, n_out),
        **_settings(config, preprocessor),
        "clip.vision.is_deepstack_layers": array(
            "BOOL", [layer in deepstack for layer in range(n_layers)]
        ),
    }
    return Part(rules=tuple(rules), late_metadata=metadata)


def _sizes(vision: Section, n_out: int) -> dict[str, Value]:
    """Return the keys that give the tower's sizes; `build_vision` has checked their bounds."""

    def size(key: str) -> int:
        return vision.integer(key, low=1, high=1 << 20)

    patch_size = size("patch_size")
    return {
        "clip.has_vision_encoder": boolean(True),
        "clip.vision.projection_dim": u32(n_out),
        "clip.vision.image_size": u32(math.isqrt(size("num_position_embeddings")) * patch_size),
        "clip.vision.patch_size": u32(patch_size),
        "clip.vision.embedding_length": u32(size("hidden_size")),
        "clip.vision.feed_forward_length": u32(size("intermediate_size")),
        "clip.vision.block_count": u32(size("depth")),
        "clip.vision.attention.head_count": u32(size("num_heads")),
    }


def _settings(config: Section, preprocessor: Section) -> dict[str, Value]:
    """Return the keys that say how pixels are normalized and what the projector is."""
    epsilon = config.section("text_config").number("rms_norm_eps", low=1e-12, high=1, default=1e-6)
    return {
        "clip.vision.image_mean": array(
            "FLOAT32", preprocessor.numbers("image_mean", length=3, low=-10, high=10)
        ),
        "clip.vision.image_std": array(
            "FLOAT32", preprocessor.numbers("image_std", length=3, low=1e-6, high=10)
        ),
        "clip.projector_type": string(_PROJECTOR_TYPE),
        "clip.use_gelu": boolean(True),
        "clip.vision.spatial_merge_size": u32(2),
        # transformers fixes the vision norms' epsilon at 1e-6; llama.cpp takes the text model's.
        "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
    }


def _check_fixed(
    vision: Section, preprocessor: Section, n_embd: int, n_head: int, n_positions: int
) -> None:
    """Refuse what the graph computes in one way only, when the config asks for another."""
    vision.require("hidden_act", ("gelu_pytorch_tanh", "gelu"), default="gelu_pytorch_tanh")
    vision.require("spatial_merge_size", (2,), default=2)
    vision.require("temporal_patch_size", (_N_FRAMES,), default=_N_FRAMES)
    vision.require("in_channels", (3,), default=3)
    if vision.has("rope_parameters"):
        rope = vision.section("rope_parameters")
        rope.require("rope_theta", (10000, 10000.0), default=10000)
        rope.require("rope_type", ("axial", "default"), default="axial")
    if n_embd % n_head or (n_embd // n_head) % 4:
        vision.fail("num_heads", f"heads of {n_embd} channels in all, each divisible by 4")
    if math.isqrt(n_positions) ** 2 != n_positions:
        vision.fail("num_position_embeddings", "a square number")
    preprocessor.require("do_rescale", (True,), default=True)
    preprocessor.require("do_normalize", (True,), default=True)
    scale = preprocessor.number("rescale_factor", low=0, high=1, default=1 / 255)
    if not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        preprocessor.fail("rescale_factor", "1/255: llama.cpp scales pixels with no other value")


def _pair(source: str, target: str, shape: tuple[int, ...]) -> list[Rule]:
    """Return the rules of a weight and its bias, which has the weight's first dimension."""
    return [
        Rename(source=f"{source}.weight", target=f"{target}.weight", shape=shape),
        Rename(source=f"{source}.bias", target=f"{target}.bias", shape=shape[:1]),
    ]


def _embedding_rules(prefix: str, n_embd: int, patch_size: int, n_positions: int) -> list[Rule]:
    patch = "v.patch_embd"
    return [
        # llama.cpp has no 3-D convolution: one kernel per frame, and it adds their results.
        Split(
            source=f"{prefix}patch_embed.proj.weight",
            targets=(f"{patch}.weight", f"{patch}.weight.1"),
            shape=(n_embd, 3, _N_FRAMES, patch_size, patch_size),
            axis=2,
            squeeze=True,
            precision="f16 or f32",
        ),
        Rename(source=f"{prefix}patch_embed.proj.bias", target=f"{patch}.bias", shape=(n_embd,)),
        # Interpolated at run time, in float32 only.
        Rename(
            source=f"{prefix}pos_embed.weight",
            target="v.position_embd.weight",
            shape=(n_positions, n_embd),
            precision="f32",
        ),
    ]


def _block_rules(source: str, target: str, n_embd: int, n_ff: int) -> list[Rule]:
    return [
        *_pair(f"{source}norm1", f"{target}ln1", (n_embd,)),
        *_pair(f"{source}attn.qkv", f"{target}attn_qkv", (3 * n_embd, n_embd)),
        *_pair(f"{source}attn.proj", f"{target}attn_out", (n_embd, n_embd)),
        *_pair(f"{source}norm2", f"{target}ln2", (n_embd,)),
        *_pair(f"{source}mlp.linear_fc1", f"{target}ffn_up", (n_ff, n_embd)),
        *_pair(f"{source}mlp.linear_fc2", f"{target}ffn_down", (n_embd, n_ff)),
    ]


def _merger_rules(
    source: str, targets: tuple[str, str, str], n_embd: int, n_out: int, *, n_norm: int
) -> list[Rule]:
    """Return the rules of a merger: norm, then two layers over four patches side by side."""
    norm, first, second = targets
    merged = _N_MERGED * n_embd
    return [
        *_pair(f"{source}norm", norm, (n_norm,)),
        *_pair(f"{source}linear_fc1", first, (merged, merged)),
        *_pair(f"{source}linear_fc2", second, (n_out, merged)),
    ]


FAMILY = Family(
    name="qwen3_vl",
    architectures=("Qwen3VLForConditionalGeneration",),
    vision_models=("qwen3_vl", "qwen3_vl_vision"),
    text_models=(QWEN3_VL,),
    text_prefix="model.language_model.",
    vision_prefix="model.visual.",
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|vision_start|><|image_pad|><|vision_end|>",
    runtime_tokens=("<|vision_start|>", "<|vision_end|>"),
    status="dense models; equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
