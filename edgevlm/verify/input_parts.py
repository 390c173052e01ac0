"""What the makers of transformers' inputs share: the tokenizer, the template, the result."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
# (question, images) -> token ids, tensors for the model's call.
Prepare = Callable[[str, Sequence[Pixels]], tuple[list[int], dict[str, Any]]]
_MODELS = "transformers.models"
# What stands for one visual token until the text is complete: no template writes it.
MARK = "\0"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a checkpoint's prompts become inputs.

    Attributes:
        prepare: makes those of one prompt.
        image_token: id that stands for a visual token.
        kinds: name of the argument that tells a call which tokens are visual; "" for none.
        break_token: id of a token between the rows of an image, whose embedding llama.cpp's
            projector hands over with the visual ones; -1 for none.
        stacks_tiles: llama.cpp encodes all tiles of an image at once, one below the other.
        masks: (model, token ids [1, n], which are visual [1, n]) -> what a call gets as its
            attention mask; None: ones.
    """

    prepare: Prepare
    image_token: int
    kinds: str = ""
    break_token: int = -1
    stacks_tiles: bool = False
    masks: Callable[[Any, Any, Any], Any] | None = None


def transformers_module(name: str) -> Any:
    """Return a module of transformers' models by its name."""
    return importlib.import_module(f"{_MODELS}.{name}")


def load_tokenizer(folder: Path) -> Any:
    """Return a checkpoint's tokenizer."""
    transformers: Any = importlib.import_module("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def templated(maker: Any, prompt: str, images: Sequence[Pixels]) -> str:
    """Return the rendered chat template of a question about images."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    return maker.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def image_token(config: Section) -> int:
    """Return the id that stands for a visual token."""
    key = "image_token_id" if config.has("image_token_id") else "image_token_index"
    return config.integer(key, low=0, high=1 << 31)


def image_settings(checkpoint: Checkpoint) -> Section:
    """Return the image settings, whichever transformers wrote them."""
    for file, key in (
        ("processor_config.json", "image_processor"),
        ("preprocessor_config.json", ""),
    ):
        found = checkpoint.optional_json(file)
        if found is not None and (not key or found.has(key)):
            return found.section(key) if key else found
    return Section({}, file="preprocessor_config.json")
