"""Processors of transformers whose images are the whole, then tiles that are joined."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert.config import Section
from numpy.typing import NDArray


def anyres_processor(folder: Path, config: Section, tokenizer: Any) -> Any:
    """Return the processor of LLaVA-NeXT or Granite 4 Vision; LLaVA-NeXT-Video's images alone.

    Args:
        folder: of the checkpoint.
        config: config.json.
        tokenizer: transformers' own.
    """
    is_granite = config.text("model_type", default="llava_next") == "granite4_vision"
    kind = "granite4_vision" if is_granite else "llava_next"
    make = getattr(
        _module(f"{kind}.processing_{kind}"),
        f"{'Granite4Vision' if is_granite else 'LlavaNext'}Processor",
    )
    images_of = _module("llava_next.image_processing_pil_llava_next").LlavaNextImageProcessorPil
    strategy = config.text("vision_feature_select_strategy", default="default")
    vision = config.section("vision_config")
    return make(
        image_processor=images_of.from_pretrained(folder),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        patch_size=vision.integer("patch_size", low=1, high=8192, default=16),
        vision_feature_select_strategy=strategy,
        # CLIP's class token is taken away again by the strategy.
        num_additional_image_tokens=int(strategy == "default"),
        **({"downsample_rate": config.text("downsample_rate")} if is_granite else {}),
    )


class OnevisionImages:
    """LLaVA-OneVision's images, each a prompt's only one.

    Its processor cannot be made without one of videos, which needs torchvision.

    Args:
        folder: of the checkpoint.
        config: config.json.
    """

    def __init__(self, folder: Path, config: Section) -> None:
        module = _module("llava_onevision.image_processing_pil_llava_onevision")
        self._images = module.LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        vision = config.section("vision_config")
        side = vision.integer("image_size", low=1, high=8192, default=384)
        patch = vision.integer("patch_size", low=1, high=8192, default=14)
        made = _module("llava_onevision.processing_llava_onevision").LlavaOnevisionProcessor
        self._counts = made.__new__(made)
        self._counts.image_processor = self._images
        self._counts.num_image_tokens = (side // patch) ** 2
        self._counts.vision_aspect_ratio = config.text(
            "vision_aspect_ratio", default="anyres_max_9"
        )
        self._side = side

    def tensors(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        """Return what a call of the model needs of images, RGB uint8 [height, width, 3]."""
        made = self._images(images=list(images), return_tensors="pt")
        return {key: made[key] for key in ("pixel_values", "image_sizes")}

    def n_tokens(self, image: NDArray[np.uint8]) -> int:
        """Return how many visual tokens an image becomes."""
        height, width, _ = image.shape
        count: int = self._counts._get_number_of_features(height, width, self._side, self._side)
        return count


def _module(name: str) -> Any:
    return importlib.import_module(f"transformers.models.{name}")
