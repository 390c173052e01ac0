"""Projectors of which preflight asks no more than how images are cut, and how thin these may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.deepseek_projector import check_deepseek_ocr, check_deepseek_ocr2
from edgevlm.runtime.internvl_projector import check_internvl
from edgevlm.runtime.lfm2_canvas import MAX_ASPECT as MAX_LFM2_ASPECT
from edgevlm.runtime.lfm2_projector import check_lfm2
from edgevlm.runtime.minicpm_projector import check_minicpm
from edgevlm.runtime.paddleocr_projector import check_paddleocr
from edgevlm.runtime.page_canvas import MAX_ASPECT as MAX_PAGE_ASPECT
from edgevlm.runtime.page_canvas import PageCanvas
from edgevlm.runtime.pixtral_projector import check_lighton
from edgevlm.runtime.slice_canvas import MAX_ASPECT as MAX_SLICE_ASPECT
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.stretch_canvas import MAX_ASPECT as MAX_STRETCH_ASPECT
from edgevlm.runtime.tile_canvas import Canvas

# By `clip.projector_type`; each checks its file and raises GGUFError.
CANVASES: Mapping[str, Callable[[GGUFFile], Canvas | SliceCanvas | PageCanvas]] = {
    "deepseekocr": check_deepseek_ocr,
    "deepseekocr2": check_deepseek_ocr2,
    "internvl": check_internvl,
    "lfm2": check_lfm2,
    "lightonocr": check_lighton,
    "minicpmv4_6": check_minicpm,
    "paddleocr": check_paddleocr,
}
# Of a side to the other; 0 for those that take any.
MAX_ASPECTS = {
    "deepseekocr": MAX_PAGE_ASPECT,
    "deepseekocr2": MAX_PAGE_ASPECT,
    "lfm2": MAX_LFM2_ASPECT,
    "minicpmv4_6": MAX_SLICE_ASPECT,
    "paddleocr": MAX_STRETCH_ASPECT,
}
