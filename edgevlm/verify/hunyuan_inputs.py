"""Inputs of HunYuanVL, and its positions as ports of the model's own code have them.

transformers 5.23 rewrote two pieces of that code. They compute something else than llama.cpp
(tools/mtmd/clip.cpp, ggml's `rope_multi`) and mlx-vlm (models/hunyuan_vl), which agree:

- `recomposition_frequencies` doubles each section of a head where they repeat the list of sections:
  the halves of a head, which rotate together, then turn by different positions (row and picture for
  column and place), no rotation at all.
- `interpolate_pos_encoding` scales the position table to the size of the image; they scale it by
  (size + 0.1) / side, which moves each sample a little.

A reference is of the model, so both are put right before transformers is asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
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

CLASS = "HunYuanVLForConditionalGeneration"
_PAD = "<\uff5chy_place\u2581holder\u2581no\u2581102\uff5c>"
_MARGIN = 0.1


def hunyuan_inputs(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Return the inputs of a checkpoint."""
    tokenizer = load_tokenizer(folder)
    module = transformers_module("hunyuan_vl.image_processing_pil_hunyuan_vl")
    processor = module.HunYuanVLImageProcessorPil.from_pretrained(folder)
    merge = int(processor.merge_size)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            tensors = dict(processor(images=list(images), return_tensors="pt"))
            for _, rows, columns in tensors["image_grid_thw"].tolist():
                # A vector ends each row, one stands before and one behind all.
                n_tokens = rows // merge * (columns // merge + 1) + 2
                text = text.replace(_PAD, MARK * n_tokens, 1)
        # The template writes what begins a text itself.
        ids = tokenizer(text.replace(MARK, _PAD), add_special_tokens=False)["input_ids"]
        return ids, tensors

    token = image_token(checkpoint.config)
    return Inputs(prepare=prepare, image_token=token, kinds="mm_token_type_ids")


def with_own_positions(model: Any) -> Any:
    """Return transformers' model of this class, its two pieces put right."""
    rotary = model.model.language_model.rotary_emb
    rotary.recomposition_frequencies = MethodType(_recomposed, rotary)
    patches = model.model.vision_tower.embeddings
    patches.interpolate_pos_encoding = MethodType(_interpolated, patches)
    return model


def _recomposed(rotary: Any, freq: Any) -> Any:
    """Return [batch, tokens, head] cosines or sines from those of each kind of position."""
    torch: Any = importlib.import_module("torch")
    sections = list(rotary.mrope_section)
    pieces = torch.cat((freq, freq), dim=-1).split(sections * 2, dim=-1)
    parts = [piece[number % len(sections)] for number, piece in enumerate(pieces)]
    return torch.cat(parts, dim=-1)


def _interpolated(patches: Any, embeddings: Any, height: int, width: int) -> Any:
    """Return [1, patches, width of the tower] rows of the table for an image."""
    torch: Any = importlib.import_module("torch")
    side = patches.position_edge
    table = patches.position_embedding.weight[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    height, width = int(height), int(width)
    scaled = torch.nn.functional.interpolate(
        table.float(),
        scale_factor=((height + _MARGIN) / side, (width + _MARGIN) / side),
        mode=patches.config.interpolate_mode,
        align_corners=False,
    )
    rows = scaled.permute(0, 2, 3, 1).reshape(1, height * width, -1)
    return rows.to(embeddings.dtype)
