"""Inputs of DeepSeek-OCR and DeepSeek-OCR 2: tiles of an image, then the whole, and a vector."""

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

_PAD = "<image>"
# Pixels of a visual token's side: a patch of 16, halved twice behind the tower.
_CELL = 64


def deepseek_ocr2_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint."""
    tokenizer = load_tokenizer(folder)
    module = transformers_module("deepseek_ocr2.image_processing_pil_deepseek_ocr2")
    processor = module.DeepseekOcr2ImageProcessorPil.from_pretrained(folder)
    n_whole, n_tile = (
        (side // _CELL) ** 2 for side in (processor.size["height"], processor.tile_size)
    )

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            tensors = dict(processor(images=list(images), return_tensors="pt"))
            for n_tiles in tensors["num_local_patches"].tolist():
                text = text.replace(_PAD, MARK * (n_tile * n_tiles + n_whole + 1), 1)
        return tokenizer(text.replace(MARK, _PAD))["input_ids"], tensors

    return Inputs(prepare=prepare, image_token=image_token(checkpoint.config))


def deepseek_ocr_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint of DeepSeek-OCR's towers.

    The image processor of that class needs torchvision; that of DeepSeek-OCR 2 cuts images in the
    same way (both `_preprocess`, transformers 5.23).
    """
    tokenizer = load_tokenizer(folder)
    module = transformers_module("deepseek_ocr2.image_processing_pil_deepseek_ocr2")
    processor = module.DeepseekOcr2ImageProcessorPil.from_pretrained(folder)
    side, tile, least, most = (
        processor.size["height"],
        processor.tile_size,
        processor.min_patches,
        processor.max_patches,
    )

    def grid_of(image: Pixels) -> list[int]:
        height, width, _ = image.shape
        if max(height, width) <= tile:
            return [1, 1]
        return list(module.get_optimal_tiled_canvas((height, width), (tile, tile), least, most))

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            tensors = dict(processor(images=list(images), return_tensors="pt"))
            tensors["num_local_patches"] = tensors["num_local_patches"].tolist()
            tensors["patches_grid"] = [grid_of(image) for image in images]
            for (columns, rows), n_tiles in zip(
                tensors["patches_grid"], tensors["num_local_patches"], strict=True
            ):
                # A vector ends each row of either.
                n_whole, n_tile = side // _CELL, tile // _CELL
                n_tokens = n_whole * (n_whole + 1) + 1
                n_tokens += rows * n_tile * (columns * n_tile + 1) if n_tiles else 0
                text = text.replace(_PAD, MARK * n_tokens, 1)
        return tokenizer(text.replace(MARK, _PAD))["input_ids"], tensors

    return Inputs(prepare=prepare, image_token=image_token(checkpoint.config))
