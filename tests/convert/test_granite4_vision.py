"""Granite 4 Vision: streams to layers, other names, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import ConversionPlan, plan_conversion

from edgevlm.errors import CheckpointError
from tests.convert.tricks import error_of, rename_tensors
from tests.goldens.files import read_golden_json

Golden = Callable[[str], Path]
LAYER, OFFSETS = "clip.vision.feature_layer", "clip.vision.projector.spatial_offsets"
MAPPING = "granite.deepstack_mapping"


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden("granite4_vision"), tmp_path / "checkpoint"))


def edited(folder: Path, path: str, value: object, file: str = "config.json") -> Path:
    """Change a key of a JSON file; `path` has dots."""
    document = read_golden_json(folder / file)
    *outer, key = path.split(".")
    place: dict[str, Any] = document
    for part in outer:
        place = place[part]
    place[key] = value
    (folder / file).write_text(json.dumps(document), encoding="utf-8")
    return folder


def streams(plan: ConversionPlan) -> list[object]:
    """Return layers of the tower and offsets in the file's order, and which layer takes which."""
    values = {**plan.text.metadata, **plan.mmproj.metadata}
    return [values[key].value for key in (LAYER, OFFSETS, MAPPING)]


@pytest.mark.parametrize(
    ("pairs", "spatial", "expected"),
    [
        # The first stream stands in place of embeddings: -1 for its layer.
        ([[-2, 2], [-1, 0]], [1], [(2, 2, 1), (-1, 0, -1), (-1, 1, 2)]),
        # Projectors are numbered as the pairs stand, layers of the tower from its input.
        ([[3, 0], [2, 2]], [1], [(2, 2, 1), (-1, 0, -1), (-1, 1, 2)]),
        ([[1, -1], [2, -2]], [0], [(2, 1, 0), (0, -1, -1), (-1, 1, 2)]),
    ],
)
def test_streams_go_to_their_layers(
    checkpoint: Path, pairs: list[list[int]], spatial: list[int], expected: list[tuple[int, ...]]
) -> None:
    edited(checkpoint, "deepstack_layer_map", pairs)
    edited(checkpoint, "spatial_target_layers", spatial)
    assert streams(plan_conversion(checkpoint)) == expected


def test_a_projector_keeps_its_number_wherever_its_stream_goes(
    golden: Golden, checkpoint: Path
) -> None:
    """transformers counts pairs as they stand; llama.cpp's converter sorts them first."""
    edited(checkpoint, "deepstack_layer_map", [[-1, 0], [-2, 2]])
    renamed = {"layerwise_projectors.0.": "layerwise_projectors.1."}
    renamed |= {other: name for name, other in renamed.items()}

    def exchanged(name: str) -> str:
        for one, other in renamed.items():
            if one in name:
                return name.replace(one, other)
        return name

    rename_tensors(checkpoint, exchanged)
    assert tensors(plan_conversion(checkpoint)) == tensors(
        plan_conversion(golden("granite4_vision"))
    )


def tensors(plan: ConversionPlan) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for tensor in (*plan.text.tensors, *plan.mmproj.tensors):
        n_rows = 1
        for size in tensor.info.shape[:-1]:
            n_rows *= size
        found[tensor.info.name] = tensor.read(0, n_rows).tobytes()
    return found


def test_older_names_of_the_tower_give_the_same_files(golden: Golden, checkpoint: Path) -> None:
    rename_tensors(
        checkpoint, lambda name: name.replace("vision_tower.", "vision_tower.vision_model.")
    )
    assert tensors(plan_conversion(checkpoint)) == tensors(
        plan_conversion(golden("granite4_vision"))
    )


def test_projectors_that_no_layer_takes_are_dropped_with_the_reason(checkpoint: Path) -> None:
    dropped = plan_conversion(checkpoint).ledger.dropped
    unused = [name for name in dropped if "spatial_projectors." in name]
    assert {name.split(".")[2] for name in unused} == {"1", "2", "3"}
    assert {dropped[name] for name in unused} == {
        "no layer of the text model takes this projector's features"
    }


REFUSED: list[tuple[str, object]] = [
    ("deepstack_layer_map", [[-1, 1], [-2, 2]]),
    ("deepstack_layer_map", [[-1, 0], [-2, 1]]),
    ("deepstack_layer_map", [[0, 0], [-2, 2]]),
    ("deepstack_layer_map", [[4, 0], [-2, 2]]),
    ("deepstack_layer_map", [[-1, 3], [-2, 2]]),
    ("deepstack_layer_map", [[-1, 0, 1]]),
    ("deepstack_layer_map", [[-1, True], [-2, 2]]),
    ("deepstack_layer_map", None),
    ("spatial_target_layers", [1, 2, 3, 4, 5]),
    ("spatial_vision_layer", 0),
    ("downsample_rate", "1/4"),
    ("downsample_rate", "3/6"),
    ("downsample_rate", "0/0"),
    ("downsample_rate", "half"),
    ("image_grid_pinpoints", []),
    ("image_grid_pinpoints", [[16, 20]]),
    ("image_grid_pinpoints", [[16, 16, 16]]),
    ("vision_feature_select_strategy", "default"),
    ("qformer_config.num_hidden_layers", 2),
    ("qformer_config.hidden_act", "relu"),
    ("qformer_config.layer_norm_eps", 1e-6),
    ("qformer_config.use_qformer_text_input", True),
    ("vision_config.layer_norm_eps", 1e-5),
    ("vision_config.hidden_act", "quick_gelu"),
    ("text_config.residual_multiplier", 0.0),
    ("text_config.head_dim", 32),
    ("text_config.hidden_act", "gelu"),
]


@pytest.mark.parametrize(("path", "value"), REFUSED)
def test_what_the_graph_does_not_compute_is_refused(
    checkpoint: Path, path: str, value: object
) -> None:
    error = error_of(edited(checkpoint, path, value))
    assert isinstance(error, CheckpointError)
    assert f"`{path}`" in error.message


def test_another_scaling_of_pixels_is_refused(checkpoint: Path) -> None:
    error = error_of(edited(checkpoint, "resample", 2, "preprocessor_config.json"))
    assert "`resample`" in error.message
