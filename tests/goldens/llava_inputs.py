"""The inputs of LLaVA as its processor makes them, images without torchvision."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.goldens.files import drawn_image
from tests.goldens.recipe import Inputs

_PROCESSORS = {
    "CLIPImageProcessor": ("clip.image_processing_pil_clip", "CLIPImageProcessorPil"),
    "SiglipImageProcessor": ("siglip.image_processing_pil_siglip", "SiglipImageProcessorPil"),
}


def llava_inputs(checkpoint: Path) -> Inputs:
    """Return the inputs of prompts; see Recipe."""
    transformers: Any = importlib.import_module("transformers")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    module, name = _PROCESSORS[settings["image_processor_type"]]
    images_of: Any = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    strategy = config["vision_feature_select_strategy"]
    processor = transformers.LlavaProcessor(
        image_processor=images_of.from_pretrained(checkpoint),
        tokenizer=tokenizer,
        patch_size=config["vision_config"]["patch_size"],
        vision_feature_select_strategy=strategy,
        chat_template=tokenizer.chat_template,
        # CLIP's class token is taken away again by the strategy.
        num_additional_image_tokens=int(strategy == "default"),
    )

    def inputs(prompt: str, images: tuple[str, ...]) -> tuple[list[int], dict[str, Any]]:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pictures = [drawn_image(name) for name in images] or None
        found = processor(text=[text], images=pictures, return_tensors="pt")
        ids = found["input_ids"][0].tolist()
        return ids, {"pixel_values": found["pixel_values"]} if images else {}

    return inputs


def class_token_last(model: Any) -> None:
    """Hand over the class token behind the patches, and leave out the first: as llama.cpp does."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        del module, inputs
        states = output.hidden_states
        output.hidden_states = tuple(
            None if state is None else state.roll(-1, dims=1) for state in states
        )
        return output

    model.model.vision_tower.register_forward_hook(hook)
