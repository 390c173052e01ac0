"""HunYuanVL: both namings, the published size over shapes alone, refusals, positions put right."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Part, Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, map_tensors

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm.gguf_file import read_gguf
from tests.convert.published_hunyuan import FLAT, PREPROCESSOR, new_name, tensor_shapes
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_sparse_shapes

GOLDEN = "hunyuan_vl"
Change = Callable[[Config], object]
Golden = Callable[[str], Path]


def mapped(folder: Path, config: Config) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, tensor_shapes(config))
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(PREPROCESSOR, file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


def test_the_published_size_is_taken(tmp_path: Path) -> None:
    shapes = tensor_shapes(FLAT)
    # About the billion that its page says.
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (713, 996_208_112)
    parts, ledger = mapped(tmp_path, FLAT)
    assert ledger.dropped == {}
    text = {**parts["text"].metadata, **parts["text"].late_metadata}
    values: dict[str, Any] = {key.partition(".")[2]: one.value for key, one in text.items()}
    assert list(values["rope.dimension_sections"]) == [16, 16, 16, 16]
    assert (values["rope.freq_base"], values["rope.scaling.alpha"]) == (10000.0, 1000.0)
    assert values["attention.key_length"] == 128
    vision = {key: one.value for key, one in parts["mmproj"].late_metadata.items()}
    assert vision["clip.vision.image_size"] == 2048
    assert vision["clip.vision.image_min_pixels"] == 512**2
    assert vision["clip.vision.image_max_pixels"] == 2048**2
    assert "exactly 2048 pixels" in parts["mmproj"].losses[0]


def test_shapes_are_those_that_transformers_saves() -> None:
    config = read_golden_json(GOLDENS / GOLDEN / "checkpoint" / "config.json")
    stored = read_golden_json(GOLDENS / GOLDEN / "weights.json")["tensors"]
    assert {key: tuple(shape) for key, (shape, _) in stored.items()} == tensor_shapes(config)


def test_both_namings_give_the_same_tensors(golden: Golden, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(golden(GOLDEN), tmp_path / "new"))
    rename_tensors(renamed, new_name)
    digests: list[dict[str, bytes]] = []
    for number, folder in enumerate((golden(GOLDEN), renamed)):
        paths = tmp_path / f"{number}.gguf", tmp_path / f"mmproj-{number}.gguf"
        convert_checkpoint(plan_conversion(folder), text_path=paths[0], mmproj_path=paths[1])
        digests.append(
            {
                tensor.name: path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
                for path in paths
                for tensor in read_gguf(path).tensors
            }
        )
    assert digests[0] == digests[1]


def _rope(**changes: object) -> Change:
    return lambda c: c["text_config"]["rope_parameters"].update(changes)


REFUSED: dict[str, Change] = {
    "rope_type": _rope(rope_type="yarn"),
    "alpha": _rope(alpha=None),
    "factor": _rope(factor=2.0),
    "mrope_section": _rope(mrope_section=[4, 6, 6]),
    "attention_bias": lambda c: c["text_config"].update(attention_bias=True),
    "use_qk_norm": lambda c: c["text_config"].update(use_qk_norm=False),
    "num_experts": lambda c: c["text_config"].update(num_experts=4),
    "interpolate_mode": lambda c: c["vision_config"].update(interpolate_mode="bicubic"),
    "text_hidden_size": lambda c: c["vision_config"].update(text_hidden_size=64),
    "spatial_merge_size": lambda c: c["vision_config"].update(spatial_merge_size=4),
    "max_image_size": lambda c: c["vision_config"].update(max_image_size=76),
}


@pytest.mark.parametrize("blamed", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(
    golden: Golden, tmp_path: Path, blamed: str
) -> None:
    folder = Path(shutil.copytree(golden(GOLDEN), tmp_path / "changed"))
    values = read_golden_json(folder / "config.json")
    REFUSED[blamed](values)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises((CheckpointError, ConversionError)) as caught:
        plan_conversion(folder)
    assert blamed in caught.value.message


@pytest.mark.parametrize(
    ("key", "value"), [("merge_size", 3), ("max_pixels", 512), ("resample", 2)]
)
def test_images_that_cannot_be_had_are_refused(
    golden: Golden, tmp_path: Path, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(golden(GOLDEN), tmp_path / "changed"))
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**read_golden_json(file), key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=key):
        plan_conversion(folder)
