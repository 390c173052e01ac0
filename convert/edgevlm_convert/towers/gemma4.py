"""What Gemma 4 with a tower and without one have in common: pixels, budgets, sound left out.

Facts: transformers image_processing_pil_gemma4.py and image_processing_gemma4_unified.py; what the
graphs take from tools/mtmd/models/gemma4v.cpp and gemma4uv.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevlm_convert.config import Section
from edgevlm_convert.family import Source
from edgevlm_convert.rules import Drop

# llama.cpp's own, which the graphs never read.
IMAGE_SIZE = 224
# Patches a side that become one token, where a projector's file does not say.
USUAL_POOL = 3
_BICUBIC = 3
_BUDGETS, _USUAL_BUDGET = (70, 140, 280, 560, 1120), 280
_SOUND = ("model.audio_tower.", "model.embed_audio.", "audio_tower.", "embed_audio.")
_SOUND_LOSS = "sound: the audio tower is left out; text and images are all that can be asked about"


def sound_rules(source: Source) -> list[Drop]:
    """Return the rules that leave out every tensor that hears."""
    names = [name for name in source.shapes if name.startswith(_SOUND)]
    return [Drop(source=name, reason="no sound can be asked about") for name in names]


def sound_losses(rules: Sequence[Drop]) -> tuple[str, ...]:
    """Say that sound is left out, where there is any."""
    return (_SOUND_LOSS,) if rules else ()


def with_pixels(source: Source) -> Source:
    """Return the source with pixels from 0 to 1, which the graphs take."""
    preprocessor = source.preprocessor
    if not preprocessor.boolean("do_normalize", default=False):
        preprocessor = preprocessor.with_values({"image_mean": [0.0] * 3, "image_std": [1.0] * 3})
    return replace(source, preprocessor=preprocessor.with_values({"do_normalize": True}))


def most_pixels(preprocessor: Section, *, patch: int, pool: int) -> int:
    """Return how many pixels an image is scaled to at most; llama.cpp's own limit is another.

    Args:
        preprocessor: image settings.
        patch: side of a patch in pixels.
        pool: patches a side that become one token.

    Raises:
        CheckpointError: a setting that the runtime does not have.
    """
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    preprocessor.require("patch_size", (patch,), default=patch)
    preprocessor.require("pooling_kernel_size", (pool,), default=pool)
    preprocessor.require("max_soft_tokens", _BUDGETS, default=_USUAL_BUDGET)
    n_tokens = preprocessor.integer("max_soft_tokens", low=1, high=1 << 20, default=_USUAL_BUDGET)
    return n_tokens * (patch * pool) ** 2
