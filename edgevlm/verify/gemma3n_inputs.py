"""Gemma 3n's prompts: 256 visual tokens between two others, of which the last is one of them.

As transformers' `Gemma3nProcessor.replace_image_token` writes them. `<end_of_image>` is an id of
the vision tower's own vocabulary: edgevlm hands its row over with those of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevlm_convert.checkpoint import Checkpoint

from edgevlm.verify.input_parts import (
    Inputs,
    Pixels,
    image_token,
    load_tokenizer,
    templated,
    transformers_module,
)

_SOFT, _BEGIN, _END = "<image_soft_token>", "<start_of_image>", "<end_of_image>"
_END_ID, _N_TOKENS = 262144, 256


def gemma3n_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint of Gemma 3n."""
    config = checkpoint.config
    tokenizer = load_tokenizer(folder)
    module = transformers_module("siglip.image_processing_pil_siglip")
    processor = module.SiglipImageProcessorPil.from_pretrained(folder)
    span = f"\n\n{_BEGIN}{_SOFT * _N_TOKENS}{_END}\n\n"

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images).replace(_SOFT, span)
        # The template writes BOS itself.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not images:
            return ids, {}
        made = processor(images=list(images), return_tensors="pt")
        return ids, {"pixel_values": made["pixel_values"]}

    return Inputs(
        prepare=prepare,
        image_token=image_token(config),
        break_token=config.integer("eoi_token_id", low=0, high=1 << 31, default=_END_ID),
    )
