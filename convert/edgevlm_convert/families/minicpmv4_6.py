"""MiniCPM-V 4.6, MiniCPM-OCR: a SigLIP tower that merges patches midway, a merger, Qwen3.5.

Facts: tensor names and metadata from llama.cpp conversion/minicpm.py, tools/mtmd/clip-impl.h; what
the graph fixes from tools/mtmd/models/minicpmv.cpp and clip.cpp (`PROJECTOR_TYPE_MINICPMV4_6`);
config keys and defaults from transformers' `MiniCPMV4_6Config` and `MiniCPMV4_6ImageProcessor`, and
from `MiniCPMOcrConfig` and `MiniCPMOcrImageProcessor`, which are the same with other defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import array, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Rule
from edgevlm_convert.text.qwen3_5 import QWEN3_5
from edgevlm_convert.towers.vision import TowerSizes, pair, size_metadata
from edgevlm_convert.towers.vit import (
    SIGLIP_DEFAULTS,
    activation_metadata,
    block_rules,
    embedding_rules,
    last_norm_rules,
    read_vit,
)

_PROJECTOR_TYPE = "minicpmv4_6"
_OCR = "MiniCPMOcrForConditionalGeneration"
# The graph works out which row of the position table a patch has from this number.
_POSITIONS_PER_SIDE = 70
_USUAL_SLICE = 448
_MAX_SLICE = 4096
_BICUBIC = 3
# transformers fixes the epsilon of the last merger's norm; the graph has one for all of them.
_EPSILON = 1e-6
_N_MERGED = 4
# What the runtime here does with every image; the class's own defaults are the same.
_IMAGE_SETTINGS: Mapping[str, object] = {
    "max_slice_nums": 9,
    "slice_mode": True,
    "use_image_id": True,
    "small_image_upsize": "always",
}


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    config, preprocessor = source.config, source.preprocessor
    vision = source.vision.with_defaults(SIGLIP_DEFAULTS)
    sizes = _read_sizes(vision)
    merges_twice = _read_mode(config, preprocessor) == "16x"
    layer = config.integer("insert_layer_id", low=0, high=sizes.n_layers - 1, default=6)
    side = _read_slice(preprocessor, sizes.patch_size * (4 if merges_twice else 2))
    prefix = source.prefixes.vision
    epsilon = vision.number("layer_norm_eps", low=1e-12, high=1.0)
    return Part(
        rules=(
            *embedding_rules(prefix, sizes),
            *block_rules(prefix, sizes),
            *last_norm_rules(prefix, sizes.n_embd),
            *_inner_rules(f"{prefix}vit_merger.", sizes, is_read=merges_twice),
            *_outer_rules(source, sizes.n_embd),
        ),
        late_metadata={
            **size_metadata(source, replace(sizes, image_size=side)),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.projector.scale_factor": u32(4 if merges_twice else 2),
            "clip.vision.wa_layer_indexes": array("INT32", [layer]),
            **activation_metadata(vision),
            "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
        },
        losses=(*_norm_losses(epsilon), *_image_losses(preprocessor)),
    )


def _read_sizes(vision: Section) -> TowerSizes:
    sizes = read_vit(vision)
    if sizes.image_size // sizes.patch_size != _POSITIONS_PER_SIDE:
        vision.fail(
            "image_size",
            f"{_POSITIONS_PER_SIDE} patches a side: llama.cpp knows no other table of positions",
        )
    vision.require("window_kernel_size", ([2, 2],), default=[2, 2])
    return sizes


def _read_mode(config: Section, preprocessor: Section) -> str:
    """Return whether patches are merged twice, "16x", or behind the tower alone, "4x"."""
    key = "downsample_mode"
    mode = config.text(key, default="4x" if _OCR in config.texts("architectures") else "16x")
    if mode not in ("16x", "4x"):
        config.fail(key, "16x or 4x")
    preprocessor.require(key, (mode,), default=mode)
    config.require("merge_kernel_size", ([2, 2],), default=[2, 2])
    config.require("merger_times", (1,), default=1)
    config.require("drop_vision_last_layer", (False,), default=False)
    return mode


def _read_slice(preprocessor: Section, cell: int) -> int:
    """Return the side of a square slice in pixels."""
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    key = "scale_resolution"
    side = preprocessor.integer(key, low=cell, high=_MAX_SLICE, default=_USUAL_SLICE)
    if side % cell:
        preprocessor.fail(key, f"a multiple of the {cell} pixels of a visual token")
    return side


def _inner_rules(source: str, sizes: TowerSizes, *, is_read: bool) -> list[Rule]:
    """Return the rules of what merges patches between two blocks of the tower."""
    n_embd, target = sizes.n_embd, "v.vit_merger."
    merged, inner = _N_MERGED * n_embd, _N_MERGED * sizes.n_ff
    rules = pair(f"{source}layer_norm1", f"{target}ln1", (n_embd,))
    for name, to in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "out")):
        rules += pair(f"{source}self_attn.{name}", f"{target}attn_{to}", (n_embd, n_embd))
    rules += pair(f"{source}pre_norm", f"{target}ds_ln", (merged,))
    rules += pair(f"{source}linear_1", f"{target}ds_ffn_up", (inner, merged))
    rules += pair(f"{source}linear_2", f"{target}ds_ffn_down", (n_embd, inner))
    if is_read:
        return rules
    reason = "`downsample_mode` is 4x: patches are merged behind the tower alone"
    return [Drop(source=name, reason=reason) for rule in rules for name in rule.shapes]


def _outer_rules(source: Source, n_embd: int) -> list[Rule]:
    """Return the rules of the merger behind the tower, which ends in the text model's width."""
    prefix, merged = f"{source.prefixes.projector}mlp.0.", _N_MERGED * n_embd
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    return [
        *pair(f"{prefix}pre_norm", "mm.input_norm", (merged,)),
        *pair(f"{prefix}linear_1", "mm.up", (merged, merged)),
        *pair(f"{prefix}linear_2", "mm.down", (n_text, merged)),
    ]


def _norm_losses(epsilon: float) -> tuple[str, ...]:
    if epsilon == _EPSILON:
        return ()
    return (
        f"norm behind the vision tower: llama.cpp takes the tower's epsilon {epsilon:g} for it,"
        f" transformers {_EPSILON:g}",
    )


def _image_losses(preprocessor: Section) -> tuple[str, ...]:
    """Say what the runtime does otherwise with images than `MiniCPMV4_6ImageProcessor`."""
    given = preprocessor.with_defaults(_IMAGE_SETTINGS)
    others = [
        f"{key} {given.raw(key)}"
        for key, usual in _IMAGE_SETTINGS.items()
        if given.raw(key) != usual
    ]
    settings = (
        "image settings: the runtime cuts an image into 9 slices at most, numbers it and scales up"
        f" a small one; this checkpoint has {', '.join(others)}"
    )
    return (
        *((settings,) if others else ()),
        "images of a few shapes, most of them long: llama.cpp gives a slice a row or a column of"
        " visual tokens more or fewer than transformers",
    )


FAMILY = Family(
    name="minicpmv4_6",
    architectures=("MiniCPMV4_6ForConditionalGeneration", _OCR),
    vision_models=("minicpmv4_6_vision", "minicpm_ocr_vision"),
    text_models=(QWEN3_5,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.vision_tower.", projector="model.merger."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|image_pad|>",
    runtime_tokens=("<image>", "</image>", "<slice>", "</slice>", "\n"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
