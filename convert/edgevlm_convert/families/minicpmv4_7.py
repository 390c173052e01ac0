"""MiniCPM-V 4.7: MiniCPM-V 4.6, whose images and the tokens around them share one canvas.

The tensors are the same. What differs is where rotary embeddings place an image's tokens
(transformers' `MiniCPMV4_7Model.get_rope_index`): libmtmd has no such places, so the file names the
tokens that have one, and the runtime here lays them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.config import MAX_VOCABULARY
from edgevlm_convert.families.minicpmv4_6 import FAMILY as MINICPMV4_6
from edgevlm_convert.family import Part, Source
from edgevlm_convert.metadata import array

# In the order in which the file names them; the last is a line feed, as byte-level BPE spells it.
_MARKERS: Mapping[str, str] = {
    "image_start_id": "<image>",
    "image_end_id": "</image>",
    "slice_start_id": "<slice>",
    "slice_end_id": "</slice>",
    "newline_id": "\u010a",
}
_MARKERS_KEY = "edgevlm.canvas_markers"


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    part = MINICPMV4_6.projector.build(source)
    markers = [source.config.integer(key, low=0, high=MAX_VOCABULARY) for key in _MARKERS]
    late = {**part.late_metadata, _MARKERS_KEY: array("UINT32", markers)}
    return replace(part, late_metadata=late)


FAMILY = replace(
    MINICPMV4_6,
    name="minicpmv4_7",
    architectures=("MiniCPMV4_7ForConditionalGeneration",),
    vision_models=("minicpmv4_7_vision",),
    projector=replace(MINICPMV4_6.projector, build=build_vision),
    named_tokens=_MARKERS,
    status="KLD to transformers <= 1e-5, images of any size; llama.cpp alone places them otherwise",
)
