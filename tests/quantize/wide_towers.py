"""A golden whose vision tower is 256 channels wide, so that every block divides its rows.

The goldens' own towers have rows of 40 or 48 values, which no type of blocks divides.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Shape

from tests.goldens.files import GOLDENS, drawn_tensor, read_golden_json
from tests.synthetic import write_json, write_safetensors

WIDTH = 256
# No block divides it; 16 does, as it divides 4304.
N_HIDDEN = 1072


def redraw_wide(golden: str, folder: Path) -> Path:
    """Write the checkpoint of a golden, but for the tower's width, into `folder` and return it."""
    shutil.copytree(GOLDENS / golden / "checkpoint", folder)
    config: dict[str, Any] = read_golden_json(folder / "config.json")
    config["vision_config"] = _widened(config["vision_config"])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = read_golden_json(GOLDENS / golden / "weights.json")
    shapes: dict[str, Shape] = {
        name: tuple(shape) for name, (shape, _) in weights["tensors"].items()
    }
    shapes |= _wanted(folder, shapes, weights.get("integers", {}))
    write_safetensors(
        folder / "model.safetensors",
        {
            name: drawn_tensor(weights, name, shape, weights["dtype"])
            for name, shape in shapes.items()
        },
    )
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, "model.safetensors")}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def _widened(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a vision_config of the same kind with four heads of 64 channels."""
    if "encoder_config" in vision:
        # DeepSeek-OCR 2: a tower before the encoder, which ends in its width.
        encoder, sam = vision["encoder_config"], vision["sam_config"]
        channels = [*sam["downsample_channels"][:1], WIDTH]
        return {
            **vision,
            "encoder_config": _widened(encoder),
            "sam_config": {**sam, "downsample_channels": channels},
        }
    width = "embed_dim" if "embed_dim" in vision else "hidden_size"
    heads = next(key for key in ("num_heads", "num_attention_heads") if key in vision)
    sizes = {
        "head_dim": WIDTH // 4,
        "intermediate_size": N_HIDDEN,
        "mlp_ratio": N_HIDDEN / WIDTH,
        "num_key_value_heads": 4,
    }
    known = {key: value for key, value in sizes.items() if key in vision}
    return {**vision, width: WIDTH, heads: 4, **known}


def _wanted(
    folder: Path, shapes: Mapping[str, Shape], integers: Mapping[str, list[int]]
) -> dict[str, Shape]:
    """Return the shapes that the converter asks for, where it asks for one."""
    config = Section(read_golden_json(folder / "config.json"), file="config.json")
    preprocessor = read_golden_json(folder / "preprocessor_config.json")
    family = find_family(config)
    architecture, text = find_text_model(family, config)
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(preprocessor, file="preprocessor_config.json"),
        prefixes=find_prefixes(shapes, family.prefixes),
        shapes=shapes,
        token_id=lambda _: 1,
        integers=lambda name: integers[name],
    )
    parts = architecture.build(source), family.projector.build(source)
    return {
        name: shape
        for part in parts
        for rule in part.rules
        for name, shape in rule.shapes.items()
        if shape is not None and name in shapes
    }
