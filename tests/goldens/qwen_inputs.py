"""The inputs of the Qwen-VL families as their processor makes them, which needs torchvision."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tests.goldens.files import drawn_image
from tests.goldens.recipe import Inputs

_PAD = "<|image_pad|>"


def qwen_inputs(checkpoint: Path) -> Inputs:
    """Return the inputs of prompts; see Recipe."""
    transformers: Any = importlib.import_module("transformers")
    # The form that needs no torchvision.
    module: Any = importlib.import_module(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    processor = module.Qwen2VLImageProcessorPil.from_pretrained(checkpoint)

    def inputs(prompt: str, images: tuple[str, ...]) -> tuple[list[int], dict[str, Any]]:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if not images:
            return tokenizer(text)["input_ids"], {}
        pixels = processor(images=[drawn_image(name) for name in images], return_tensors="pt")
        for grid in pixels["image_grid_thw"]:
            n_tokens = int(grid.prod()) // 4
            text = text.replace(_PAD, "\0" * n_tokens, 1)
        ids = tokenizer(text.replace("\0", _PAD))["input_ids"]
        return ids, {key: pixels[key] for key in ("pixel_values", "image_grid_thw")}

    return inputs


def image_kinds(model: Any, tokens: Any) -> dict[str, Any]:
    """Return which tokens are visual, as transformers 5 asks; see Recipe."""
    return {"mm_token_type_ids": (tokens == model.config.image_token_id).int()}
