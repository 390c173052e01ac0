"""DeepSeek-OCR: the published size over shapes alone, Unlimited-OCR's window, refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from edgevlm_convert import plan_conversion

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.published_deepseek_ocr import FIRST, first_shapes
from tests.convert.test_deepseek_ocr2 import mapped
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config
from tests.goldens.recipes.deepseek_ocr import RECIPE

Change = Callable[[Config], object]
Golden = Callable[[str], Path]


def test_the_published_size_is_taken(tmp_path: Path) -> None:
    shapes = first_shapes()
    # About the 3.3 billion that its page says.
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (2710, 3_336_106_240)
    parts, ledger = mapped(tmp_path, FIRST, shapes)
    assert set(ledger.dropped) == {"model.vision_model.embeddings.patch_embedding.weight"}
    assert parts["text"].losses == ()
    vision = {key: one.value for key, one in parts["mmproj"].late_metadata.items()}
    assert vision["clip.vision.feed_forward_length"] == 4096
    assert vision["clip.vision.preproc_max_tiles"] == 9
    assert vision["clip.vision.sam.block_count"] == 12


def test_unlimited_ocr_has_a_window_and_more_tiles(golden: Golden, tmp_path: Path) -> None:
    plan = plan_conversion(golden("deepseek_ocr"))
    assert "the prompt and 128 tokens" in plan.losses[0]
    folder = Path(shutil.copytree(golden("deepseek_ocr"), tmp_path / "old"))
    assert RECIPE.adapt is not None
    RECIPE.adapt(folder)
    assert plan_conversion(folder).losses == ()
    file = folder / "config.json"
    names = {"architectures": ["UnlimitedOCRForCausalLM"], "sliding_window_size": 64}
    file.write_text(json.dumps({**read_golden_json(file), **names}), encoding="utf-8")
    settings = folder / "preprocessor_config.json"
    kept = {key: value for key, value in RECIPE.preprocessor.items() if key != "max_patches"}
    settings.write_text(json.dumps(kept), encoding="utf-8")
    plan = plan_conversion(folder)
    assert "the prompt and 64 tokens" in plan.losses[0]
    assert plan.mmproj.metadata["clip.vision.preproc_max_tiles"].value == 32


REFUSED: dict[str, Change] = {
    "encoder_config.hidden_act": lambda c: c["vision_config"]["encoder_config"].update(
        hidden_act="gelu"
    ),
    "encoder_config.image_size": lambda c: c["vision_config"]["encoder_config"].update(
        image_size=336
    ),
    "encoder_config.layer_norm_eps": lambda c: c["vision_config"]["encoder_config"].update(
        layer_norm_eps=1e-6
    ),
    "rope_theta": lambda c: c["text_config"]["rope_parameters"].update(rope_theta=1e6),
}


@pytest.mark.parametrize("blamed", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(
    golden: Golden, tmp_path: Path, blamed: str
) -> None:
    folder = Path(shutil.copytree(golden("deepseek_ocr"), tmp_path / "changed"))
    values = read_golden_json(folder / "config.json")
    REFUSED[blamed](values)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises((CheckpointError, ConversionError)) as caught:
        plan_conversion(folder)
    assert blamed in caught.value.message


def test_tiles_of_another_size_are_refused(golden: Golden, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden("deepseek_ocr"), tmp_path / "changed"))
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**read_golden_json(file), "tile_size": 768}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="tile_size"):
        plan_conversion(folder)
