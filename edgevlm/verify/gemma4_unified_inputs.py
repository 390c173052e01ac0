"""Inputs of Gemma 4 without towers, whose image processor's only form needs torchvision.

Facts: transformers image_processing_gemma4_unified.py (`patches_merge`): a row of pixel values is a
visual token, [side, side, 3], channels last. Pillow's bicubic filter stands for torchvision's with
`antialias`.

transformers 5.23 has two masks for this class: one that `generate` makes with a static cache
(`create_masks_for_generate`), as Gemma 4's: visual tokens see each other both ways in layers with a
window, within it; and one that a call makes itself, as Gemma 3's: in every layer, whatever the
window. llama.cpp computes the first, which is what is asked for here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from numpy.typing import NDArray

from edgevlm.runtime.gemma4_canvas import Gemma4Canvas
from edgevlm.verify.input_parts import (
    MARK,
    Inputs,
    Pixels,
    image_settings,
    image_token,
    load_tokenizer,
    templated,
)

_PAD = "<|image|>"


class _Images:
    """Image settings of a checkpoint, and what they make of images."""

    def __init__(self, settings: Section) -> None:
        def whole(key: str, default: int) -> int:
            return settings.integer(key, low=1, high=1 << 20, default=default)

        cell = whole("patch_size", 16) * whole("pooling_kernel_size", 3)
        self._canvas = Gemma4Canvas(cell=cell, max_tokens=whole("max_soft_tokens", 280))

    def rows(self, image: Pixels) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return visual tokens [tokens, side x side x 3] and their columns and rows [tokens, 2]."""
        (pixels,) = self._canvas.cut(image)
        side = self._canvas.cell
        n_rows, n_columns = pixels.shape[0] // side, pixels.shape[1] // side
        values = pixels.astype(np.float32) / np.float32(255)
        blocks = values.reshape(n_rows, side, n_columns, side, 3).swapaxes(1, 2)
        places = np.indices((n_rows, n_columns))[::-1].reshape(2, -1).T
        return blocks.reshape(n_rows * n_columns, -1), places

    def tensors(self, images: Sequence[Pixels], torch: Any) -> dict[str, Any]:
        """Return the arguments of a call: as many rows for each image, places -1 behind the last.

        Args:
            images: one or more.
            torch: the module.
        """
        n_most = self._canvas.max_tokens
        values = np.zeros((len(images), n_most, 3 * self._canvas.cell**2), np.float32)
        places = np.full((len(images), n_most, 2), -1, np.int64)
        for number, image in enumerate(images):
            rows, where = self.rows(image)
            values[number, : len(rows)] = rows
            places[number, : len(rows)] = where
        return {
            "pixel_values": torch.from_numpy(values),
            "image_position_ids": torch.from_numpy(places),
        }


def gemma4_unified_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint."""
    torch: Any = importlib.import_module("torch")
    tokenizer = load_tokenizer(folder)
    images_of = _Images(image_settings(checkpoint))

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        for image in images:
            n_tokens = len(images_of.rows(image)[0])
            text = text.replace(_PAD, f"<|image>{MARK * n_tokens}<image|>", 1)
        # The template writes BOS itself.
        ids = tokenizer(text.replace(MARK, _PAD), add_special_tokens=False)["input_ids"]
        return ids, images_of.tensors(images, torch) if images else {}

    def masks(model: Any, tokens: Any, visual: Any) -> Any:
        return model.create_masks_for_generate(
            model.config,
            # Of the embeddings nothing but their shape and type is looked at.
            torch.empty((*tokens.shape, 0), dtype=model.dtype),
            torch.ones_like(tokens),
            None,
            None,
            mm_token_type_ids=visual,
        )

    return Inputs(
        prepare=prepare,
        image_token=image_token(checkpoint.config),
        kinds="mm_token_type_ids",
        masks=masks,
    )
