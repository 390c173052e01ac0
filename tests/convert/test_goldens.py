"""Our files beside those of llama.cpp's converter, as the goldens keep them."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gguf
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.plan import OuttypeOption

from tests.goldens.files import ADAPTER, GOLDENS, read_golden_json
from tests.goldens.recipes import RECIPES
from tests.synthetic import draw, tensor_shapes

TAKEN = [recipe for recipe in RECIPES.values() if not recipe.refused]
CASES = [
    *((recipe.name, outtype) for recipe in TAKEN for outtype in recipe.outtypes),
    ("shapes", "auto"),
    ("shapes", "f16"),
]
# What a user may choose, and what we add.
OWN_KEYS = ("general.name", "edgevlm.")
Golden = Callable[[str], Path]


@dataclass(frozen=True, kw_only=True)
class Both:
    """llama.cpp's files and ours, text model and projector, and what differs on purpose."""

    pairs: list[tuple[dict[str, Any], gguf.GGUFReader]]
    mended: Mapping[str, str] = field(default_factory=dict[str, str])
    mended_keys: Mapping[str, str] = field(default_factory=dict[str, str])


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def both(
    request: pytest.FixtureRequest,
    golden: Golden,
    shapes_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    """The golden and our file, for text model and projector."""
    name, outtype = cast(tuple[str, OuttypeOption], request.param)
    folder = tmp_path_factory.mktemp("converted")
    recipe = RECIPES.get(name)
    checkpoint = golden(name) if recipe else shapes_checkpoint
    if recipe and recipe.adapt:
        checkpoint = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
        recipe.adapt(checkpoint)
    paths = {file: folder / f"{file}.gguf" for file in ("text", "mmproj")}
    convert_checkpoint(
        plan_conversion(checkpoint, outtype=outtype),
        text_path=paths["text"],
        mmproj_path=paths["mmproj"],
    )
    theirs = read_golden_json(GOLDENS / name / "converter.json")[outtype]
    pairs = [(theirs[file], gguf.GGUFReader(paths[file])) for file in theirs]
    if recipe is None:
        return Both(pairs=pairs)
    return Both(pairs=pairs, mended=recipe.mended, mended_keys=recipe.mended_keys)


def test_tensors_are_llama_cpps_in_name_order_shape_type_and_bytes(both: Both) -> None:
    for theirs, reader in both.pairs:
        ours = [
            [
                tensor.name,
                [int(size) for size in tensor.shape[::-1]],
                tensor.tensor_type.name,
                hashlib.sha256(tensor.data.tobytes()).hexdigest(),
            ]
            for tensor in reader.tensors
            if tensor.name not in both.mended
        ]
        assert ours == [entry for entry in theirs["tensors"] if entry[0] not in both.mended]


def test_what_is_mended_differs(both: Both) -> None:
    ours: dict[str, tuple[list[int], str]] = {}
    theirs: dict[str, tuple[list[int], str]] = {}
    for golden, reader in both.pairs:
        for one in reader.tensors:
            shape = [int(size) for size in one.shape[::-1]]
            ours[one.name] = shape, hashlib.sha256(one.data.tobytes()).hexdigest()
        theirs |= {entry[0]: (entry[1], entry[3]) for entry in golden["tensors"]}
    for name in both.mended:
        assert ours.get(name) != theirs.get(name), f"{name} needs no exception"


def test_metadata_is_llama_cpps_in_order_type_and_value(both: Both) -> None:
    for golden, reader in both.pairs:
        ours = [
            (key, ":".join(kind.name for kind in field.types), _exact(field.contents()))
            for key, field in reader.fields.items()
            if not key.startswith(("GGUF.", *OWN_KEYS)) and key not in both.mended_keys
        ]
        theirs = [
            (key, kind, _exact(value))
            for key, (kind, value) in golden["metadata"].items()
            if key != "general.name" and key not in both.mended_keys
        ]
        assert ours == theirs


@pytest.mark.parametrize("recipe", [one for one in TAKEN if one.adapt], ids=lambda one: one.name)
def test_old_names_give_the_tensors_of_new_ones(
    golden: Golden, tmp_path: Path, recipe: Any
) -> None:
    new = golden(recipe.name)
    old = Path(shutil.copytree(new, tmp_path / "old"))
    recipe.adapt(old)
    contents: list[dict[str, str]] = []
    for number, checkpoint in enumerate((new, old)):
        paths = tmp_path / f"text{number}.gguf", tmp_path / f"mmproj{number}.gguf"
        plan = plan_conversion(checkpoint)
        convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
        contents.append(
            {
                tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest()
                for path in paths
                for tensor in gguf.GGUFReader(path).tensors
            }
        )
    assert contents[0] == contents[1]


def test_names_and_shapes_are_those_that_transformers_saves() -> None:
    config = read_golden_json(GOLDENS / "qwen3_vl" / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / "qwen3_vl" / "weights.json")["tensors"]
    assert {name: tuple(shape) for name, (shape, _) in stored.items()} == tensor_shapes(config)


def test_every_folder_has_a_recipe() -> None:
    folders = {path.parent.name for path in GOLDENS.glob("*/weights.json")}
    assert folders == {*RECIPES, ADAPTER}


def test_goldens_stay_small() -> None:
    assert sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file()) < 12_000_000


def test_weights_are_drawn_alike_everywhere() -> None:
    values = draw("model.visual.blocks.0.norm1.weight", (4,), seed=1)
    assert values.tobytes().hex() == WEIGHT_BYTES


def test_the_normalizer_that_llama_cpp_leaves_out_is_kept(golden: Golden) -> None:
    plan = plan_conversion(golden("qwen3_vl"))
    assert plan.text.metadata["edgevlm.tokenizer.normalizer"].value == "NFC"


def test_name_is_the_folders_unless_given(golden: Golden) -> None:
    checkpoint = golden("qwen3_vl")
    assert plan_conversion(checkpoint).name == "checkpoint"
    plan = plan_conversion(checkpoint, name="tiny")
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
