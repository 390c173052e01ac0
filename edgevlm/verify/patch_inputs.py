"""Inputs of classes whose images are rows of patches: Qwen-VL's, GLM's, PaddleOCR-VL's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgevlm_convert.checkpoint import Checkpoint

from edgevlm.verify.input_parts import (
    MARK,
    Inputs,
    Pixels,
    image_token,
    load_tokenizer,
    templated,
    transformers_module,
)


def _of_patches(
    folder: Path, checkpoint: Checkpoint, processor: Any, pad: str, kinds: str
) -> Inputs:
    """Images as rows of patches, each between two tokens that the template writes."""
    tokenizer = load_tokenizer(folder)
    n_merged = int(processor.merge_size) ** 2

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        if not images:
            return tokenizer(text)["input_ids"], {}
        made = processor(images=list(images), return_tensors="pt")
        for grid in made["image_grid_thw"]:
            text = text.replace(pad, MARK * (int(grid.prod()) // n_merged), 1)
        ids = tokenizer(text.replace(MARK, pad))["input_ids"]
        return ids, {key: made[key] for key in ("pixel_values", "image_grid_thw")}

    token = image_token(checkpoint.config)
    return Inputs(prepare=prepare, image_token=token, kinds=kinds)


def rows_of(
    module: str, name: str, pad: str, *, kinds: str = "mm_token_type_ids"
) -> Callable[[Path, Checkpoint], Inputs]:
    """Return the maker of inputs of a class whose images are rows of patches.

    Args:
        module: of transformers' models that has the image processor.
        name: which that processor's begins with.
        pad: the token that stands for a visual one.
        kinds: see Inputs.
    """
    path = f"{module}.image_processing_pil_{module}"

    def maker(folder: Path, checkpoint: Checkpoint) -> Inputs:
        images_of = getattr(transformers_module(path), f"{name}ImageProcessorPil")
        return _of_patches(folder, checkpoint, images_of.from_pretrained(folder), pad, kinds)

    return maker
