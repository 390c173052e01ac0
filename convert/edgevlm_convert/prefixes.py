"""Where a checkpoint keeps its parts: one normalisation of old and new tensor prefixes.

transformers 4 and 5 save the same model under different prefixes, and some vision towers with an
inner `vision_model.` level or without. Rules are written with the prefixes found here: every
message and the ledger name tensors as the checkpoint does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Older names first tried last; what stands directly behind a prefix tells `model.` from
# `model.language_model.`.
_TEXT = (
    "model.language_model.",
    "language_model.model.",
    "model.text_model.",
    "language_model.",
    "model.",
    "thinker.model.language_model.",
    "thinker.model.",
)
_VISION = (
    "model.visual.vision_model.",
    "visual.vision_model.",
    "model.visual.",
    "visual.",
    "model.vision_tower.vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
    "model.vision_model.",
    "vision_model.",
    "model.image_tower.vision_model.",
    "image_tower.vision_model.",
    "model.image_tower.",
    "image_tower.",
    "thinker.model.visual.",
    "thinker.visual.",
)
_PROJECTOR = (
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "model.connector.",
    "connector.",
    "mlp1.",
    "model.aligner.",
    "aligner.",
    "model.projector.",
    "mlp_AR.",
)
_BLOCKS = ("blocks.", "encoder.layers.", "encoder.layer.", "transformer.layers.")
_HEAD = ("lm_head.", "language_model.lm_head.", "model.lm_head.", "thinker.lm_head.")


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """What the names of a checkpoint's tensors begin with, each with its final dot.

    Attributes:
        text: of the text model's `layers.0...`.
        head: of the output matrix's `weight`.
        vision: of the vision tower's blocks.
        projector: of what joins the two; that of the tower where it is part of it.
    """

    text: str
    vision: str
    projector: str
    head: str = "lm_head."


def find_prefixes(names: Iterable[str], usual: Prefixes) -> Prefixes:
    """Return the prefixes that a checkpoint uses; `usual` for a part that it seems to lack.

    Args:
        names: of all tensors.
        usual: what transformers 5 writes for the family; tried first.
    """
    known = tuple(names)

    def find(first: str, others: Sequence[str], stems: tuple[str, ...]) -> str:
        for prefix in (first, *others):
            starts = tuple(prefix + stem for stem in stems)
            if any(name.startswith(starts) for name in known):
                return prefix
        return first

    vision = find(usual.vision, _VISION, _BLOCKS)
    own_projector = usual.projector != usual.vision
    return Prefixes(
        text=find(usual.text, _TEXT, ("layers.",)),
        vision=vision,
        projector=find(usual.projector, _PROJECTOR, ("",)) if own_projector else vision,
        head=find(usual.head, _HEAD, ("",)),
    )


def other_names(name: str) -> list[str]:
    """Return what a tensor may be called under the other prefixes of its part."""
    found: list[str] = []
    for prefixes in (_TEXT, _VISION, _PROJECTOR, _HEAD):
        for prefix in prefixes:
            if name.startswith(prefix):
                stem = name.removeprefix(prefix)
                found += [other + stem for other in prefixes if other != prefix]
    return found
