"""DeepSeek-OCR 2: both namings, the published size over shapes alone, refusals."""

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
from tests.convert.published_deepseek_ocr import (
    PROCESSOR,
    PUBLISHED,
    Shapes,
    new_name,
    new_names,
    tensor_shapes,
)
from tests.convert.tricks import rename_tensors
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config
from tests.goldens.recipes.deepseek_ocr2 import RECIPE
from tests.synthetic import write_json, write_sparse_shapes

Change = Callable[[Config], object]


def mapped(folder: Path, config: Config, shapes: Shapes) -> tuple[dict[str, Part], Ledger]:
    """Map a checkpoint whose weights are a hole in a file."""
    write_json(folder / "config.json", config)
    write_sparse_shapes(folder, shapes)
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(PROCESSOR, file="processor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    return parts, ledger


def test_the_published_size_is_taken(tmp_path: Path) -> None:
    shapes = tensor_shapes()
    # About the 3.4 billion that its page says.
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (2707, 3_389_119_360)
    parts, ledger = mapped(tmp_path, PUBLISHED, shapes)
    assert ledger.dropped == {}
    keys = {**parts["text"].metadata, **parts["text"].late_metadata}
    values: dict[str, Any] = {key.partition(".")[2]: one.value for key, one in keys.items()}
    assert values["leading_dense_block_count"] == 1
    assert values["rope.freq_base"] == 10000.0
    # DeepSeek's configuration says 0, of an attention that this model does not have.
    assert values["rope.dimension_count"] == 128
    assert (values["expert_count"], values["expert_used_count"]) == (64, 6)
    vision = {key: one.value for key, one in parts["mmproj"].late_metadata.items()}
    assert vision["clip.vision.block_count"] == 24
    assert vision["clip.vision.attention.head_count_kv"] == 2
    assert vision["clip.vision.preproc_max_tiles"] == 6


def test_it_is_taken_by_the_names_of_transformers_class(tmp_path: Path) -> None:
    shapes = new_names(tensor_shapes())
    parts, ledger = mapped(tmp_path, PUBLISHED, shapes)
    assert set(ledger.used) == set(shapes)
    assert "v.view_seperator" in ledger.used["model.view_separator"]
    assert parts["mmproj"].late_metadata["clip.vision.sam.block_count"].value == 12


def test_both_namings_give_the_same_tensors(golden: Callable[[str], Path], tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(golden("deepseek_ocr2"), tmp_path / "new"))
    rename_tensors(renamed, lambda name: name if ".experts." in name else new_name(name))
    # Experts stay as they are saved, one by one, behind the prefix of the others.
    rename_tensors(renamed, _moved)
    digests: list[dict[str, bytes]] = []
    for number, folder in enumerate((golden("deepseek_ocr2"), renamed)):
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


def _moved(name: str) -> str:
    is_expert = ".experts." in name and name.startswith("model.layers.")
    return name.replace("model.", "model.language_model.", 1) if is_expert else name


def test_a_checkpoint_of_deepseeks_own_class_is_taken_whole(
    golden: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(golden("deepseek_ocr2"), tmp_path / "old"))
    assert RECIPE.adapt is not None
    RECIPE.adapt(folder)
    settings = read_golden_json(folder / "preprocessor_config.json")
    (folder / "preprocessor_config.json").unlink()
    # Its repository has the image settings at the root of this file alone, and no template.
    kept = {key: settings[key] for key in ("image_mean", "image_std")}
    write_json(folder / "processor_config.json", {**PROCESSOR, **kept})
    (folder / "chat_template.jinja").unlink()
    plan = plan_conversion(folder)
    assert "<image>\\n" in str(plan.text.metadata["tokenizer.chat_template"].value)
    assert plan.mmproj.metadata["clip.vision.image_mean"].value == pytest.approx(kept["image_mean"])


REFUSED: dict[str, Change] = {
    "rope_theta": lambda c: c["text_config"]["rope_parameters"].update(rope_theta=1e6),
    "num_key_value_heads": lambda c: c["text_config"].update(num_key_value_heads=1),
    "topk_method": lambda c: c["text_config"].update(topk_method="group_limited_greedy"),
    "n_group": lambda c: c["text_config"].update(n_group=2),
    "norm_topk_prob": lambda c: c["text_config"].update(norm_topk_prob=True),
    "attention_bias": lambda c: c["text_config"].update(attention_bias=True),
    "mlp_layer_types": lambda c: c["text_config"].update(
        mlp_layer_types=["sparse", "dense", "sparse"]
    ),
    "encoder_config.rope_parameters.rope_theta": lambda c: c["vision_config"][
        "encoder_config"
    ].update(rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
    "encoder_config.use_sliding_window": lambda c: c["vision_config"]["encoder_config"].update(
        use_sliding_window=True
    ),
    "sam_config.global_attn_indexes": lambda c: c["vision_config"]["sam_config"].update(
        global_attn_indexes=[1]
    ),
    "sam_config.use_rel_pos": lambda c: c["vision_config"]["sam_config"].update(use_rel_pos=False),
    "sam_config.image_size": lambda c: c["vision_config"]["sam_config"].update(image_size=512),
    "sam_config.downsample_channels": lambda c: c["vision_config"]["sam_config"].update(
        downsample_channels=[24, 41]
    ),
}


@pytest.mark.parametrize("blamed", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(
    golden: Callable[[str], Path], tmp_path: Path, blamed: str
) -> None:
    folder = Path(shutil.copytree(golden("deepseek_ocr2"), tmp_path / "changed"))
    values = read_golden_json(folder / "config.json")
    REFUSED[blamed](values)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises((CheckpointError, ConversionError)) as caught:
        plan_conversion(folder)
    assert blamed in caught.value.message


@pytest.mark.parametrize(
    ("key", "value"), [("crop_to_patches", False), ("tile_size", 640), ("min_patches", 1)]
)
def test_images_that_the_runtime_lays_out_otherwise_are_refused(
    golden: Callable[[str], Path], tmp_path: Path, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(golden("deepseek_ocr2"), tmp_path / "changed"))
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**read_golden_json(file), key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=key):
        plan_conversion(folder)
