"""Inputs of Video-LLaVA: an image whole, as many visual tokens as its tower has patches."""

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

_IMAGE = "<image>"


def video_llava_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint."""
    tokenizer = load_tokenizer(folder)
    module = transformers_module("video_llava.image_processing_video_llava")
    processor = module.VideoLlavaImageProcessor.from_pretrained(folder)
    vision = checkpoint.config.section("vision_config")
    patch_size = vision.integer("patch_size", low=1, high=8192, default=32)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        if not images:
            return tokenizer(text)["input_ids"], {}
        made = processor(images=list(images), return_legacy_image_output=False, return_tensors="pt")
        values = made["pixel_values"]
        n_tokens = (values.shape[2] // patch_size) * (values.shape[3] // patch_size)
        text = text.replace(_IMAGE, MARK * n_tokens)
        ids = tokenizer(text.replace(MARK, _IMAGE))["input_ids"]
        return ids, {"pixel_values": values}

    return Inputs(prepare=prepare, image_token=image_token(checkpoint.config))
