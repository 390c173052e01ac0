"""Qwen3-VL: a ViT with deepstack, joined to Qwen3.

Facts: tensor names and metadata from llama.cpp conversion/qwen3vl.py and tools/mtmd/clip-impl.h;
config keys from transformers' `Qwen3VLVisionConfig`.
"""

from __future__ import annotations

from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import array, boolean, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.qwen3 import QWEN3_VL
from edgevlm_convert.towers.qwen import (
    N_MERGED,
    epsilon_metadata,
    merger_rules,
    patch_rules,
    position_rules,
    qwen3_block_rules,
    read_n_out,
    read_qwen3_tower,
)
from edgevlm_convert.towers.vision import size_metadata

_PROJECTOR_TYPE = "qwen3vl_merger"


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision, prefix = source.vision, source.prefixes.vision
    sizes, n_positions = read_qwen3_tower(vision)
    n_out = read_n_out(source, "out_hidden_size")
    n_layers, n_embd = sizes.n_layers, sizes.n_embd
    deepstack = vision.integers(
        "deepstack_visual_indexes", low=0, high=n_layers - 1, max_length=n_layers
    )
    if len(set(deepstack)) != len(deepstack):
        vision.fail("deepstack_visual_indexes", "each layer once")
    rules = [
        *patch_rules(prefix, sizes, bias=True),
        *position_rules(prefix, sizes, n_positions),
        *qwen3_block_rules(prefix, sizes),
    ]
    for number, layer in enumerate(deepstack):
        # The checkpoint numbers the mergers, the file names the layer each one reads.
        rules += merger_rules(
            f"{prefix}deepstack_merger_list.{number}.",
            (f"v.deepstack.{layer}.norm", f"v.deepstack.{layer}.fc1", f"v.deepstack.{layer}.fc2"),
            n_embd,
            n_out,
            n_norm=N_MERGED * n_embd,
        )
    rules += merger_rules(
        f"{prefix}merger.", ("v.post_ln", "mm.0", "mm.2"), n_embd, n_out, n_norm=n_embd
    )
    return Part(
        rules=tuple(rules),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.use_gelu": boolean(True),
            "clip.vision.spatial_merge_size": u32(2),
            **epsilon_metadata(),
            "clip.vision.is_deepstack_layers": array(
                "BOOL", [layer in deepstack for layer in range(n_layers)]
            ),
        },
    )


FAMILY = Family(
    name="qwen3_vl",
    architectures=("Qwen3VLForConditionalGeneration",),
    vision_models=("qwen3_vl_vision", "qwen3_vl"),
    text_models=(QWEN3_VL,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.visual.", projector="model.visual."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|vision_start|><|image_pad|><|vision_end|>",
    runtime_tokens=("<|vision_start|>", "<|vision_end|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
