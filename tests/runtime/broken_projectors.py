"""A projector with one thing wrong, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint

from edgevlm.errors import GGUFError
from edgevlm.runtime.preflight import check_projector, check_text_model


def written(plan: ConversionPlan, folder: Path) -> tuple[Path, Path]:
    """Write what was planned: text model and projector."""
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


def check_refused(plan: ConversionPlan, folder: Path, blamed: str) -> None:
    """Hold that the projector is refused before it is loaded, in these words and with a hint."""
    text_path, projector = written(plan, folder)
    with pytest.raises(GGUFError) as caught:
        check_projector(projector, check_text_model(text_path)[0])
    assert blamed in caught.value.message
    assert caught.value.hint
