"""A 16-bit GGUF file becomes a quantized one, ours or llama.cpp's, with no model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm_convert.writer import GGUFPlan, write_gguf

from edgevlm.native.library import load_library
from edgevlm.quantize.encode import LevelEncoder
from edgevlm.quantize.run import plan_quantize

# llama.h, enum llama_ftype.
_FILE_TYPE_IDS = {"Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17}


def quantize_file(
    source: Path, target: Path, encoder: LevelEncoder, *, n_threads: int | None = None
) -> GGUFPlan:
    plan = plan_quantize(source, encoder)
    write_gguf(plan, target, encoder=encoder, n_threads=n_threads)
    return plan


def llama_quantize(source: Path, target: Path, level: str) -> None:
    """Write what the field means by a level: with the installed llama.cpp's own quantizer."""
    llama: Any = load_library().llama
    params = llama.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPE_IDS[level]
    params.nthread = 2
    status = llama.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert status == 0
