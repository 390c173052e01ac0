"""Ways to break a checkpoint."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import plan_conversion

from edgevlm.errors import EdgeVLMError
from tests.synthetic import write_json, write_safetensors

Header = dict[str, Any]
EditJson = Callable[[str, Callable[[Header], object]], None]
EditHeader = Callable[[Callable[[Header], object]], None]
Break = Callable[[Path], object]
WEIGHTS = "model.safetensors"
EMBEDDING = "model.language_model.embed_tokens.weight"


def split_safetensors(path: Path) -> tuple[Header, bytes]:
    """Return the header and the data of a safetensors file."""
    raw = path.read_bytes()
    n_header = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + n_header]), raw[8 + n_header :]


def drop_tensor(folder: Path, name: str) -> None:
    """Write the checkpoint's file again without one tensor."""
    path = folder / "model.safetensors"
    header, data = split_safetensors(path)
    header.pop("__metadata__", None)
    write_safetensors(
        path,
        {
            other: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for other, entry in header.items()
            if other != name
        },
    )


def rename_tensors(folder: Path, new_name: Callable[[str], str]) -> None:
    """Give every tensor of a checkpoint, in as many files as it has, another name."""
    weight_map: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, data = split_safetensors(path)
        header.pop("__metadata__", None)
        header = {new_name(name): entry for name, entry in header.items()}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        weight_map |= dict.fromkeys(header, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def error_of(folder: Path) -> EdgeVLMError:
    """Plan a conversion that must fail, and return a well-formed error."""
    with pytest.raises(EdgeVLMError) as caught:
        plan_conversion(folder)
    message = caught.value.message + caught.value.hint
    assert caught.value.hint, "an error says what to do next"
    assert len(message) < 2000
    assert "\x1b" not in message, "a checkpoint cannot write to the terminal"
    return caught.value
