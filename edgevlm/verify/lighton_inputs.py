"""Inputs of LightOnOCR: Pixtral's images, a token for each cell and none around them."""

from __future__ import annotations

from collections.abc import Sequence
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

_PAD = "<|image_pad|>"


def lighton_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint."""
    config = checkpoint.config
    tokenizer = load_tokenizer(folder)
    module = transformers_module("pixtral.image_processing_pil_pixtral")
    processor = module.PixtralImageProcessorPil.from_pretrained(folder)
    cell = config.section("vision_config").integer("patch_size", low=1, high=8192, default=14)
    cell *= config.integer("spatial_merge_size", low=1, high=64, default=2)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            made = processor(images=list(images), return_tensors="pt")
            for height, width in made["image_sizes"].tolist():
                text = text.replace(_PAD, MARK * ((height // cell) * (width // cell)), 1)
            tensors = {key: made[key] for key in ("pixel_values", "image_sizes")}
        return tokenizer(text.replace(MARK, _PAD))["input_ids"], tensors

    return Inputs(prepare=prepare, image_token=image_token(config))
