"""How far apart two sides may be, by what the file's weights are stored in.

The numbers were measured over all goldens, between the runtime and transformers in float32. Highest
found of the median KLD: 1e-6 with F32 files, 3e-5 with F16, 1.6e-3 with BF16; of the embeddings'
relative error: 6e-4 (the runtime's GELU is a table of 16-bit values), 9e-4, 5e-3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm.gguf_file import GGUFFile
from edgevlm.verify.report import Status

# What passes, and what is only worth a warning.
Limits = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What passes, and what is only worth a warning.

    Attributes:
        median_kld: of all positions, in nats. What is computed otherwise shows at every position.
        max_kld: of the worst position. Where sums are rounded, a router may choose another expert
            or two tokens be nearly equal: a single position says little, and never fails alone.
        min_cosine: of the worst visual token.
        relative_error: of all visual tokens of an image.
    """

    median_kld: Limits
    max_kld: Limits
    min_cosine: Limits
    relative_error: Limits


# From the finest to the coarsest. A quantized file is judged by `edgevlm compare`.
BOUNDS: Mapping[str, Bounds] = {
    "F32": Bounds(
        median_kld=(5e-6, 5e-5),
        max_kld=(1e-4, 1e-2),
        min_cosine=(0.9999, 0.999),
        relative_error=(2e-3, 2e-2),
    ),
    "F16": Bounds(
        median_kld=(1e-4, 1e-3),
        max_kld=(1e-2, math.inf),
        min_cosine=(0.999, 0.99),
        relative_error=(5e-3, 5e-2),
    ),
    "BF16": Bounds(
        median_kld=(3e-3, 3e-2),
        max_kld=(0.1, math.inf),
        min_cosine=(0.999, 0.98),
        relative_error=(2e-2, 0.2),
    ),
    "quantized": Bounds(
        median_kld=(0.1, 0.5),
        max_kld=(math.inf, math.inf),
        min_cosine=(0.95, 0.8),
        relative_error=(0.3, 0.6),
    ),
}
_PRECISIONS = tuple(BOUNDS)


def precision(file: GGUFFile) -> str:
    """Return which bounds a file is held to: the type of most of its weights."""
    counts: Counter[str] = Counter()
    for tensor in file.tensors:
        counts[tensor.type] += tensor.n_weights
    most = counts.most_common(1)[0][0] if counts else "F32"
    return most if most in BOUNDS else "quantized"


def coarser(one: str, other: str) -> str:
    """Return the coarser of two precisions."""
    return max(one, other, key=_PRECISIONS.index)


def judge(value: float, limits: Limits, *, rising: bool = False) -> Status:
    """Return "pass", "warn" or "fail"; with `rising`, larger is better. No number fails."""
    good, tolerable = limits
    if math.isnan(value):
        return "fail"
    if rising:
        return "pass" if value >= good else "warn" if value >= tolerable else "fail"
    return "pass" if value <= good else "warn" if value <= tolerable else "fail"
