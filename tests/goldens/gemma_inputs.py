"""The inputs of Gemma 3 as its processor makes them; its checkpoints as they were published."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.convert.tricks import rename_tensors
from tests.goldens.files import drawn_image
from tests.goldens.recipe import Inputs


def gemma_inputs(checkpoint: Path) -> Inputs:
    """Return the inputs of prompts; see Recipe."""
    transformers: Any = importlib.import_module("transformers")
    models = "transformers.models.gemma3"
    # The form that needs no torchvision.
    images_module: Any = importlib.import_module(f"{models}.image_processing_pil_gemma3")
    processor_module: Any = importlib.import_module(f"{models}.processing_gemma3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    processor = processor_module.Gemma3Processor(
        image_processor=images_module.Gemma3ImageProcessorPil.from_pretrained(checkpoint),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=config["mm_tokens_per_image"],
    )

    def inputs(prompt: str, images: tuple[str, ...]) -> tuple[list[int], dict[str, Any]]:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        # The template writes BOS itself.
        made = processor(
            text=text,
            images=[drawn_image(name) for name in images] or None,
            add_special_tokens=False,
            return_tensors="pt",
        )
        tensors = {"pixel_values": made["pixel_values"]} if images else {}
        return made["input_ids"][0].tolist(), tensors

    return inputs


def visual_tokens(model: Any, tokens: Any) -> dict[str, Any]:
    """Return which tokens are visual and so see each other; see Recipe."""
    return {"token_type_ids": (tokens == model.config.image_token_id).int()}


def as_published(folder: Path) -> None:
    """Give the vision tower the inner level that transformers 4 wrote, and llama.cpp asks for."""
    rename_tensors(
        folder, lambda name: name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    )
