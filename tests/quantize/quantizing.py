"""A 16-bit GGUF file becomes a quantized one, with no model directory around it."""

from __future__ import annotations

from pathlib import Path

from edgevlm_convert.writer import GGUFPlan, write_gguf

from edgevlm.quantize.encode import LevelEncoder
from edgevlm.quantize.run import plan_quantize


def quantize_file(
    source: Path, target: Path, encoder: LevelEncoder, *, n_threads: int | None = None
) -> GGUFPlan:
    plan = plan_quantize(source, encoder)
    write_gguf(plan, target, encoder=encoder, n_threads=n_threads)
    return plan
