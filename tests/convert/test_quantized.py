"""Every golden at the levels people use: llama.cpp's own types and bytes, and images are seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from numpy.typing import NDArray

from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.vlm import open_vlm
from tests.goldens.files import drawn_image
from tests.goldens.recipe import Recipe
from tests.goldens.recipes import RECIPES
from tests.quantize.quantizing import llama_quantize, quantize_file

Golden = Callable[[str], Path]


def logits(
    folder: Path, checkpoint: Path, recipe: Recipe, level: str | None, mmproj_level: str
) -> NDArray[np.float32]:
    """Return the first token's logits of the recipe's prompts with images."""
    folder.mkdir()
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    profile = load_profile(level) if level else None
    text = text_encoder(profile) if profile else None
    mmproj = mmproj_encoder(mmproj_level, profile=profile)
    plan = plan_conversion(checkpoint, outtype="f16", text_encoder=text, mmproj_encoder=mmproj)
    convert_checkpoint(
        plan, text_path=paths[0], mmproj_path=paths[1], text_encoder=text, mmproj_encoder=mmproj
    )
    with open_vlm(model=paths[0], mmproj=paths[1], n_ctx=1024, device="cpu") as vlm:
        return np.stack(
            [
                vlm.first_logits(question, [drawn_image(name) for name in images])
                for _, question, images in recipe.prompts
                if images
            ]
        )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_quantized_files_see_images(golden: Golden, tmp_path: Path, recipe: Recipe) -> None:
    checkpoint = golden(recipe.name)
    full = logits(tmp_path / "full", checkpoint, recipe, None, "F16")
    for level, mmproj_level in (("Q8_0", "Q8_0"), ("Q8_0", "BF16"), ("Q4_K_M", "Q8_0")):
        found = logits(tmp_path / (level + mmproj_level), checkpoint, recipe, level, mmproj_level)
        assert np.isfinite(found).all()
        # Four bits are too few for weights as random as these.
        similar = [np.corrcoef(*pair)[0, 1] for pair in zip(found, full, strict=True)]
        assert level == "Q4_K_M" or min(similar) > 0.95


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return the type and the bytes of every tensor."""
    data = path.read_bytes()
    return {
        tensor.name: (tensor.type, data[tensor.offset : tensor.offset + tensor.n_bytes])
        for tensor in read_gguf(path).tensors
    }


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_types_and_bytes_are_those_of_llama_cpps_quantizer(
    golden: Golden, tmp_path: Path, recipe: Recipe
) -> None:
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("text", "ours", "theirs"))
    plan = plan_conversion(golden(recipe.name), outtype="f16")
    convert_checkpoint(plan, text_path=source, mmproj_path=tmp_path / "mmproj.gguf")
    for level in ("Q8_0", "Q5_K_M", "Q4_K_M"):
        quantize_file(source, ours, text_encoder(load_profile(level)))
        assert llama_quantize(source, theirs, level)
        assert stored(ours) == stored(theirs)
