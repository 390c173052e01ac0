"""Qwen-Omni: whole or the thinker alone, published sizes, what hears and speaks is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from edgevlm_convert import ConversionPlan, plan_conversion
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import map_tensors

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.published_omni import QWEN2_5, QWEN3
from tests.convert.published_qwen3 import Form
from tests.convert.published_qwen3 import tensor_shapes as qwen3_vl_shapes
from tests.convert.tricks import rename_tensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.omni_checkpoints import make_whole
from tests.goldens.qwen2_checkpoints import tensor_shapes
from tests.goldens.recipe import Config
from tests.synthetic import preprocessor_config, write_json, write_sparse_shapes

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One family of thinkers.

    Attributes:
        golden: name of its golden.
        wholes: classes of whole checkpoints.
        speaking: tensors of what speaks, as whole checkpoints have them.
    """

    golden: str
    wholes: tuple[str, ...]
    speaking: tuple[str, ...]


KINDS = (
    Kind(
        golden="qwen2_5_omni",
        wholes=("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration"),
        speaking=(
            "talker.model.layers.0.self_attn.q_proj.weight",
            "talker.thinker_to_talker_proj.weight",
            "token2wav.code2wav_dit_model.input_embed.proj.weight",
        ),
    ),
    Kind(
        golden="qwen3_omni_moe",
        wholes=("Qwen3OmniMoeForConditionalGeneration",),
        speaking=("talker.hidden_projection.linear_fc1.weight", "code2wav.decoder.0.conv.weight"),
    ),
)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.golden)
each_whole = pytest.mark.parametrize(
    ("kind", "whole"),
    [(kind, whole) for kind in KINDS for whole in kind.wholes],
    ids=lambda value: value if isinstance(value, str) else "",
)
Copy = Callable[[Kind], Path]


@pytest.fixture
def copy(golden: Callable[[str], Path], tmp_path: Path) -> Copy:
    """Copies a golden's checkpoint, to change it."""
    return lambda kind: Path(shutil.copytree(golden(kind.golden), tmp_path / "checkpoint"))


def assert_same(one: ConversionPlan, other: ConversionPlan) -> None:
    for ours, theirs in ((one.text, other.text), (one.mmproj, other.mmproj)):
        assert {tensor.info for tensor in ours.tensors} == {t.info for t in theirs.tensors}
        assert ours.metadata == theirs.metadata
    assert one.losses == other.losses


@each_whole
def test_a_whole_checkpoint_gives_the_files_of_its_thinker(
    copy: Copy, kind: Kind, whole: str
) -> None:
    folder = copy(kind)
    alone = plan_conversion(folder)
    make_whole(folder, architecture=whole, speaking=kind.speaking)
    plan = plan_conversion(folder)
    assert_same(alone, plan)
    assert {name for name in plan.ledger.dropped if not name.startswith("thinker.")} == set(
        kind.speaking
    )


@each_kind
def test_what_hears_is_left_out_by_name_and_said(copy: Copy, kind: Kind) -> None:
    plan = plan_conversion(copy(kind))
    ears = {name for name in plan.ledger.dropped if name.startswith("audio_tower.")}
    assert ears
    assert all("llama.cpp" in plan.ledger.dropped[name] for name in ears)
    assert any("sound" in loss for loss in plan.losses)


def _in_memory(name: str) -> str:
    """What transformers 5 calls a tensor while the model runs."""
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name if name.startswith("lm_head.") else f"model.{name}"


@each_kind
@pytest.mark.parametrize("prefix", ["", "thinker."])
def test_other_names_of_the_same_tensors(copy: Copy, kind: Kind, prefix: str) -> None:
    folder = copy(kind)
    saved = plan_conversion(folder)
    rename_tensors(folder, lambda name: prefix + _in_memory(name))
    assert_same(saved, plan_conversion(folder))


@each_kind
@pytest.mark.parametrize("name", ["thinker.video_tower.proj.weight", "speaker.proj.weight"])
def test_a_tensor_of_no_known_part_is_named(copy: Copy, kind: Kind, name: str) -> None:
    folder = copy(kind)
    make_whole(folder, architecture=kind.wholes[0], speaking=(*kind.speaking, name))
    with pytest.raises(ConversionError, match=name):
        plan_conversion(folder)


@each_kind
def test_keys_are_named_where_they_stand(copy: Copy, kind: Kind) -> None:
    folder = copy(kind)
    make_whole(folder, architecture=kind.wholes[0], speaking=())
    config = read_golden_json(folder / "config.json")
    config["thinker_config"]["text_config"]["num_hidden_layers"] = 0
    write_json(folder / "config.json", config)
    with pytest.raises(
        CheckpointError, match=r"`thinker_config\.text_config\.num_hidden_layers` is 0"
    ):
        plan_conversion(folder)
    write_json(folder / "config.json", {**config, "thinker_config": [1]})
    with pytest.raises(CheckpointError, match="`thinker_config` is"):
        plan_conversion(folder)


def test_the_thinkers_own_key_ties_its_output(copy: Copy) -> None:
    folder = copy(KINDS[0])
    config = read_golden_json(folder / "config.json")
    # What transformers writes of a model that is not tied.
    assert config["text_config"]["tie_word_embeddings"]
    assert "lm_head.weight" in plan_conversion(folder).ledger.used
    write_json(folder / "config.json", {**config, "tie_word_embeddings": True})
    assert plan_conversion(folder).ledger.dropped["lm_head.weight"]


def qwen2_5_shapes(thinker: Config) -> Shapes:
    """Return the tensors of a thinker but those that hear, by name."""
    # A key that the tower does not read, as it is Qwen2-VL's.
    vision = {key: one for key, one in thinker["vision_config"].items() if key != "embed_dim"}
    config = {"tie_word_embeddings": False, **thinker, "vision_config": vision}
    shapes: Shapes = {}
    for name, shape in tensor_shapes(config).items():
        if ".attn.qkv." in name:
            parts = (name.replace("qkv", letter) for letter in "qkv")
            shapes |= dict.fromkeys(parts, (shape[0] // 3, *shape[1:]))
        else:
            shapes[name] = shape
    return shapes


def qwen3_shapes(thinker: Config) -> Shapes:
    """Return the same of a Qwen3-Omni, whose experts stand one by one."""
    names = {
        "model.language_model.": "model.",
        "model.visual.deepstack_merger_list.": "visual.merger_list.",
        "model.visual.": "visual.",
    }
    parts = {"norm.": "ln_q.", "linear_fc1.": "mlp.0.", "linear_fc2.": "mlp.2."}

    def named(name: str) -> str:
        for old, new in names.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        for old, new in parts.items() if name.startswith("visual.merger") else ():
            name = name.replace(old, new)
        return name

    config = {"tie_word_embeddings": False, **thinker}
    shapes = qwen3_vl_shapes(config, Form(one_by_one=True))
    return {named(name): shape for name, shape in shapes.items()}


SHAPES = {"qwen2_5_omni": qwen2_5_shapes, "qwen3_omni_moe": qwen3_shapes}


@each_kind
def test_shapes_are_those_that_transformers_saves(kind: Kind) -> None:
    folder = GOLDENS / kind.golden
    stored = read_golden_json(folder / "weights.json")["tensors"]
    seeing = {name: tuple(shape) for name, (shape, _) in stored.items() if name[:5] != "audio"}
    config = read_golden_json(folder / "checkpoint" / "config.json")
    assert seeing == SHAPES[kind.golden](config)


@pytest.mark.parametrize("name", [*QWEN2_5, *QWEN3])
def test_every_published_size_is_taken(tmp_path: Path, name: str) -> None:
    config = {**QWEN2_5, **QWEN3}[name]
    family_name = "qwen2_5_omni" if name in QWEN2_5 else "qwen3_omni_moe"
    seeing = SHAPES[family_name](config["thinker_config"])
    shapes = {f"thinker.{key}": shape for key, shape in seeing.items()}
    others = {"talker.codec_head.weight": (8, 8), "thinker.audio_tower.conv1.bias": (8,)}
    write_json(tmp_path / "config.json", config)
    write_sparse_shapes(tmp_path, {**shapes, **others})
    checkpoint = open_checkpoint(tmp_path)
    family = find_family(checkpoint.config)
    assert family.name == family_name
    text_model, section = find_text_model(family, checkpoint.config)
    patch_size = config["thinker_config"]["vision_config"]["patch_size"]
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=Section(preprocessor_config(patch_size), file="preprocessor_config.json"),
        prefixes=find_prefixes(checkpoint.tensors, family.prefixes),
        shapes={key: tensor.shape for key, tensor in checkpoint.tensors.items()},
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    _, ledger = map_tensors(checkpoint.tensors, {file: part.rules for file, part in parts.items()})
    assert set(ledger.used) == set(shapes)
    assert set(ledger.dropped) == set(others)
    text = {**parts["text"].metadata, **parts["text"].late_metadata}
    mmproj = parts["mmproj"].late_metadata
    sections = (16, 24, 24, 0) if name in QWEN2_5 else (24, 20, 20, 0)
    assert text[f"{text_model.name}.rope.dimension_sections"].value == sections
    if name in QWEN2_5:
        assert mmproj["clip.vision.n_wa_pattern"].value == 8
    else:
        assert text["qwen3vlmoe.n_deepstack_layers"].value == 3


def test_weights_of_experts_that_are_not_one_in_all_are_refused(copy: Copy) -> None:
    folder = copy(KINDS[1])
    config = read_golden_json(folder / "config.json")
    config["text_config"]["norm_topk_prob"] = False
    write_json(folder / "config.json", config)
    with pytest.raises(CheckpointError, match="norm_topk_prob"):
        plan_conversion(folder)
