"""Qwen2.5-VL: a ViT most of whose layers attend within windows, joined to Qwen2.

Facts: tensor names and metadata from llama.cpp conversion/qwenvl.py; what the graph fixes from
tools/mtmd/models/qwen2vl.cpp and clip.cpp (`PROJECTOR_TYPE_QWEN25VL`); config keys and defaults
from transformers' `Qwen2_5_VLVisionConfig`, windows from its vision_utils.py
(`get_vision_window_index`).
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_LAYERS, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import boolean, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.qwen2 import QWEN2_VL
from edgevlm_convert.towers.qwen2 import DEFAULTS, build_qwen2_tower, check_qwen2_tower
from edgevlm_convert.towers.vision import TowerSizes, read_image_size, read_tower

_PROJECTOR_TYPE = "qwen2.5vl_merger"
_DEFAULTS = {
    **DEFAULTS,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
# The graph's own window, in pixels; no key of the file is read for this projector.
_WINDOW_SIZE = 112


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    return build_windowed_tower(source, joined=True)


def build_windowed_tower(source: Source, *, joined: bool) -> Part:
    """Return rules and metadata of the mmproj file.

    Args:
        source: of the model.
        joined: whether query, key and value of the tower are one matrix in the checkpoint.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    vision.require("hidden_act", ("silu",), default="silu")
    sizes = read_tower(
        vision, layers="depth", heads="num_heads", image_size=read_image_size(vision)
    )
    check_qwen2_tower(vision, sizes, n_ff_key="intermediate_size")
    return build_qwen2_tower(
        source,
        sizes,
        projector_type=_PROJECTOR_TYPE,
        n_out_key="out_hidden_size",
        norm_bias=False,
        mlp={"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
        metadata={
            "clip.use_silu": boolean(True),
            "clip.vision.n_wa_pattern": u32(_read_pattern(vision, sizes)),
        },
        joined=joined,
    )


def _read_pattern(vision: Section, sizes: TowerSizes) -> int:
    """Return n where every n-th layer attends to the whole image; 0 where all do.

    The graph knows no other pattern, and an n of 1 ends its process: it looks for a mask that no
    layer uses.
    """
    key = "fullatt_block_indexes"
    listed = vision.integers(key, low=0, high=MAX_LAYERS, max_length=MAX_LAYERS)
    full = sorted({layer for layer in listed if layer < sizes.n_layers})
    if len(full) == sizes.n_layers:
        return 0
    every = full[0] + 1 if full else sizes.n_layers + 1
    if full != list(range(every - 1, sizes.n_layers, every)):
        vision.fail(key, "every n-th layer, to the end: llama.cpp computes no other pattern")
    _check_window(vision, sizes.patch_size)
    return every


def _check_window(vision: Section, patch_size: int) -> None:
    """Refuse windows that hold another number of visual tokens than the graph's."""
    side = _WINDOW_SIZE // 2 // patch_size
    if not side:
        vision.fail("patch_size", f"at most {_WINDOW_SIZE // 2}: llama.cpp's windows hold no other")
    if vision.integer("window_size", low=1, high=1 << 16) // 2 // patch_size != side:
        vision.fail("window_size", f"{_WINDOW_SIZE}: llama.cpp computes windows of no other size")


FAMILY = Family(
    name="qwen2_5_vl",
    architectures=("Qwen2_5_VLForConditionalGeneration",),
    vision_models=("qwen2_5_vl_vision", "qwen2_5_vl"),
    text_models=(QWEN2_VL,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.visual.", projector="model.visual."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|vision_start|><|image_pad|><|vision_end|>",
    image_token="<|image_pad|>",
    runtime_tokens=("<|vision_start|>", "<|vision_end|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5 except for the epsilon of"
    " the text model's norms, which this llama.cpp leaves out",
)
