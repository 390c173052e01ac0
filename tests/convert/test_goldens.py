"""Our files beside those of llama.cpp's converter, as the goldens keep them."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any, cast

import gguf
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.plan import OuttypeOption

from tests.goldens.files import GOLDENS, read_golden_json
from tests.synthetic import draw, tensor_shapes

CASES = [
    ("qwen3_vl", "auto"),
    ("qwen3_vl", "f16"),
    ("qwen3_vl", "f32"),
    ("shapes", "auto"),
    ("shapes", "f16"),
]
# What a user may choose, and what we add.
OWN_KEYS = ("general.name", "edgevlm.")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def both(
    request: pytest.FixtureRequest,
    golden_checkpoint: Path,
    shapes_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[dict[str, Any], gguf.GGUFReader]]:
    """The golden and our file, for text model and projector."""
    name, outtype = request.param
    outtype: OuttypeOption
    folder = tmp_path_factory.mktemp("converted")
    checkpoint = golden_checkpoint if name == "qwen3_vl" else shapes_checkpoint
    paths = {file: folder / f"{file}.gguf" for file in ("text", "mmproj")}
    convert_checkpoint(
        plan_conversion(checkpoint, outtype=outtype),
        text_path=paths["text"],
        mmproj_path=paths["mmproj"],
    )
    golden = read_golden_json(GOLDENS / name / "converter.json")[outtype]
    return [(golden[file], gguf.GGUFReader(path)) for file, path in paths.items()]


def test_tensors_are_llama_cpps_in_name_order_shape_type_and_bytes(
    both: list[tuple[dict[str, Any], gguf.GGUFReader]],
) -> None:
    for golden, reader in both:
        ours = [
            [
                tensor.name,
                [int(size) for size in tensor.shape[::-1]],
                tensor.tensor_type.name,
                hashlib.sha256(tensor.data.tobytes()).hexdigest(),
            ]
            for tensor in reader.tensors
        ]
        assert ours == golden["tensors"]


def test_metadata_is_llama_cpps_in_order_type_and_value(
    both: list[tuple[dict[str, Any], gguf.GGUFReader]],
) -> None:
    for golden, reader in both:
        ours = [
            (key, ":".join(kind.name for kind in field.types), _exact(field.contents()))
            for key, field in reader.fields.items()
            if not key.startswith(("GGUF.", *OWN_KEYS))
        ]
        theirs = [
            (key, kind, _exact(value))
            for key, (kind, value) in golden["metadata"].items()
            if key != "general.name"
        ]
        assert ours == theirs


def test_names_and_shapes_are_those_that_transformers_saves() -> None:
    config = read_golden_json(GOLDENS / "qwen3_vl" / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / "qwen3_vl" / "weights.json")["tensors"]
    assert {name: tuple(shape) for name, (shape, _) in stored.items()} == tensor_shapes(config)


def test_goldens_stay_small() -> None:
    assert sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file()) < 1_000_000


def test_weights_are_drawn_alike_everywhere() -> None:
    values = draw("model.visual.blocks.0.norm1.weight", (4,), seed=1)
    assert values.tobytes().hex() == WEIGHT_BYTES


def test_the_normalizer_that_llama_cpp_leaves_out_is_kept(golden_checkpoint: Path) -> None:
    plan = plan_conversion(golden_checkpoint)
    assert plan.text.metadata["edgevlm.tokenizer.normalizer"].value == "NFC"


def test_name_is_the_folders_unless_given(golden_checkpoint: Path) -> None:
    assert plan_conversion(golden_checkpoint).name == "checkpoint"
    plan = plan_conversion(golden_checkpoint, name="tiny")
    assert plan.text.metadata["general.name"].value == "tiny"
    assert plan.mmproj.metadata["general.name"].value == "tiny"


def _exact(value: Any) -> Any:
    """Floats by their bits: 1e-6 read as float32 is not the JSON's 1e-6."""
    if isinstance(value, float):
        return struct.pack("<f", value)
    if isinstance(value, list):
        return [_exact(item) for item in cast(list[Any], value)]
    return value


WEIGHT_BYTES = "a6fa723f79b4c53fff8b9e3ff6858a3f"
