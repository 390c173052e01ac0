"""The vision part of Qwen3-VL and Qwen3.5: a ViT, a merger, and deepstack where there is any.

Facts: tensor names and metadata from llama.cpp conversion/qwen3vl.py and tools/mtmd/clip-impl.h;
defaults from transformers' `Qwen3VLVisionConfig`, which the other classes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm_convert.config import MAX_LAYERS, Section
from edgevlm_convert.family import Part, Source
from edgevlm_convert.metadata import array, boolean, string, u32
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

PROJECTOR_TYPE = "qwen3vl_merger"
_DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "num_position_embeddings": 2304,
}
_DEEPSTACK = (8, 16, 24)


@dataclass(frozen=True, kw_only=True)
class MergerNames:
    """What a checkpoint calls the parts of a merger, and the list of deepstack's."""

    deepstack: str
    norm: str
    first: str
    second: str

    def of(self, merger: str) -> tuple[str, str, str]:
        """Return the names of a merger's tensors, whose prefix is `merger`."""
        return f"{merger}{self.norm}", f"{merger}{self.first}", f"{merger}{self.second}"


_USUAL = MergerNames(
    deepstack="deepstack_merger_list", norm="norm", first="linear_fc1", second="linear_fc2"
)


def read_deepstack(source: Source) -> list[int]:
    """Return the tower's layers whose output joins the text model's first layers, in order.

    Raises:
        CheckpointError: a layer that there is not, or one twice.
    """
    key = "deepstack_visual_indexes"
    vision = source.vision.with_defaults({**_DEFAULTS, key: list(_DEEPSTACK)})
    n_layers = vision.integer("depth", low=1, high=MAX_LAYERS)
    layers = vision.integers(key, low=0, high=n_layers - 1, max_length=n_layers)
    if len(set(layers)) != len(layers):
        vision.fail(key, "each layer once")
    return layers


def build_qwen3_tower(
    source: Source, *, deepstack: Sequence[int], names: MergerNames = _USUAL
) -> Part:
    """Return rules and metadata of the mmproj file.

    Args:
        source: of the model.
        deepstack: layers whose output has a merger of its own.
        names: of the mergers' tensors in the checkpoint.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision: Section = source.vision.with_defaults(_DEFAULTS)
    prefix = source.prefixes.vision
    sizes, n_positions = read_qwen3_tower(vision)
    n_out = read_n_out(source, "out_hidden_size")
    n_layers, n_embd = sizes.n_layers, sizes.n_embd
    rules = [
        *patch_rules(prefix, sizes, bias=True),
        *position_rules(prefix, sizes, n_positions),
        *qwen3_block_rules(prefix, sizes),
    ]
    for number, layer in enumerate(deepstack):
        # The checkpoint numbers the mergers, the file names the layer each one reads.
        rules += merger_rules(
            names.of(f"{prefix}{names.deepstack}.{number}."),
            (f"v.deepstack.{layer}.norm", f"v.deepstack.{layer}.fc1", f"v.deepstack.{layer}.fc2"),
            n_embd,
            n_out,
            n_norm=N_MERGED * n_embd,
        )
    rules += merger_rules(
        names.of(f"{prefix}merger."),
        ("v.post_ln", "mm.0", "mm.2"),
        n_embd,
        n_out,
        n_norm=n_embd,
    )
    return Part(
        rules=tuple(rules),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(PROJECTOR_TYPE),
            "clip.use_gelu": boolean(True),
            "clip.vision.spatial_merge_size": u32(2),
            **epsilon_metadata(),
            "clip.vision.is_deepstack_layers": array(
                "BOOL", [layer in deepstack for layer in range(n_layers)]
            ),
        },
    )
