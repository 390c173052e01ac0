"""edgevlm: put a vision-language model (VLM) on a small machine, and know what it cost.

Importing this package costs nothing: it imports the standard library only, and public names are
loaded on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevlm.build.resolve import resolve_model as resolve_model
    from edgevlm.errors import EdgeVLMError as EdgeVLMError
    from edgevlm.runtime.vlm import open_vlm as open_vlm

__version__ = "0.1.0"

_PUBLIC = {
    "EdgeVLMError": "edgevlm.errors",
    "open_vlm": "edgevlm.runtime.vlm",
    "resolve_model": "edgevlm.build.resolve",
}

__all__ = ["EdgeVLMError", "__version__", "open_vlm", "resolve_model"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
