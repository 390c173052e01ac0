"""Every way in which images are cut before libmtmd gets them."""

from __future__ import annotations

from edgevlm.runtime.anyres_canvas import AnyresCanvas
from edgevlm.runtime.page_canvas import PageCanvas
from edgevlm.runtime.slice_canvas import SliceCanvas
from edgevlm.runtime.tile_canvas import Canvas

AnyCanvas = Canvas | SliceCanvas | AnyresCanvas | PageCanvas
