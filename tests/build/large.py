"""A checkpoint of 0.7 GB that takes no disk: its weights are a hole in a sparse file, all zero."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from tests.synthetic import tensor_shapes, tiny_config, write_checkpoint, write_json

TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [12, 10, 10],
        "rope_theta": 10000.0,
        "rope_type": "default",
    },
}


def write_large_checkpoint(folder: Path) -> int:
    """Write the checkpoint into `folder` and return the bytes of its weights."""
    write_checkpoint(folder)
    config = tiny_config(text=TEXT, vision={"out_hidden_size": 1024})
    write_json(folder / "config.json", config)
    header: dict[str, object] = {}
    offset = 0
    for name, shape in tensor_shapes(config).items():
        size = 2 * math.prod(shape)
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
    return offset
