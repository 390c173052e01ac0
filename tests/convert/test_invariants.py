"""What holds for every family: total mapping, and the same bytes at every run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.families import FAMILIES
from edgevlm_convert.families.qwen3_vl import FAMILY as QWEN3_VL
from edgevlm_convert.writer import write_gguf

from edgevlm.errors import CheckpointError, ConversionError, EdgeVLMError
from tests.convert.tricks import EditHeader, EditJson, drop_tensor
from tests.synthetic import tensor_shapes, tiny_config, write_checkpoint, write_weights

NAMES = list(tensor_shapes(tiny_config()))
# One of each kind: layers, both norms, biases, the patch kernel, mergers, head.
CHOSEN = sorted(
    {name.translate(str.maketrans("", "", "0123456789")): name for name in NAMES}.values()
)


def test_each_source_tensor_is_used_once(tiny: Path) -> None:
    plan = plan_conversion(tiny)
    assert set(plan.ledger.used) == set(NAMES)
    assert plan.ledger.n_source_tensors == len(NAMES)
    made = Counter(name for names in plan.ledger.used.values() for name in names)
    assert set(made.values()) == {1}
    written = {tensor.info.name for part in (plan.text, plan.mmproj) for tensor in part.tensors}
    assert set(made) == written
    split = [name for name, names in plan.ledger.used.items() if len(names) > 1]
    assert split == ["model.visual.patch_embed.proj.weight"]


def test_a_tied_checkpoint_drops_its_copy_of_the_head_with_a_reason(tmp_path: Path) -> None:
    config = write_checkpoint(tmp_path, tied=True)
    assert plan_conversion(tmp_path).ledger.dropped == {}
    write_weights(
        tmp_path, {**config, "tie_word_embeddings": False}, seed=1, dtype="BF16", shards=1
    )
    plan = plan_conversion(tmp_path)
    assert plan.ledger.dropped == {"lm_head.weight": "tied to the token embedding"}
    assert "output.weight" not in plan.text.types


def test_two_runs_and_any_number_of_threads_give_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    written: list[tuple[bytes, bytes]] = []
    for n_threads in (1, 1, 5):
        plan = plan_conversion(tiny, name="tiny")
        paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
        convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1], n_threads=n_threads)
        assert [path.stat().st_size for path in paths] == [plan.text.n_bytes, plan.mmproj.n_bytes]
        written.append((paths[0].read_bytes(), paths[1].read_bytes()))
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_give_the_tensors_of_a_single_file(tiny: Path, tmp_path: Path, shards: int) -> None:
    write_checkpoint(tmp_path / "sharded", shards=shards)
    one, many = plan_conversion(tiny, name="x"), plan_conversion(tmp_path / "sharded", name="x")
    assert one.text.types == many.text.types
    for name, plan in (("one", one), ("many", many)):
        write_gguf(plan.text, tmp_path / name)
    data = [
        (tmp_path / name).read_bytes()[len(plan.text.header) :]
        for name, plan in (("one", one), ("many", many))
    ]
    # The order follows the shards; each tensor's bytes are the same.
    assert sorted(data[0]) == sorted(data[1])


@pytest.mark.parametrize("name", CHOSEN)
def test_a_renamed_tensor_is_an_error_that_names_it(
    broken: Path, edit_header: EditHeader, name: str
) -> None:
    edit_header(lambda header: header.update({name + "x": header.pop(name)}))
    with pytest.raises(ConversionError) as caught:
        plan_conversion(broken)
    assert f"`{name}x`" in caught.value.message
    assert f"`{name}`" in caught.value.hint


@pytest.mark.parametrize("name", CHOSEN)
def test_a_missing_tensor_is_an_error_that_names_it(broken: Path, name: str) -> None:
    drop_tensor(broken, name)
    with pytest.raises(ConversionError) as caught:
        plan_conversion(broken)
    assert f"`{name}` is missing" in caught.value.message


@pytest.mark.parametrize("name", CHOSEN)
def test_another_shape_is_an_error_that_names_the_tensor(
    broken: Path, edit_header: EditHeader, name: str
) -> None:
    def flatten(header: dict[str, Any]) -> None:
        shape = header[name]["shape"]
        header[name]["shape"] = [1, *shape]

    edit_header(flatten)
    with pytest.raises(ConversionError, match=f"tensor `{name}` has shape"):
        plan_conversion(broken)


def test_an_extra_tensor_is_an_error_that_names_it(broken: Path, edit_header: EditHeader) -> None:
    def add(header: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_")
        header["model.visual.extra.weight"] = {
            "dtype": "BF16",
            "shape": [0],
            "data_offsets": [end, end],
        }

    edit_header(add)
    with pytest.raises(
        ConversionError, match=r"no rule matches tensor `model.visual.extra.weight`"
    ):
        plan_conversion(broken)


# Each number that shapes depend on, or that must go with another; [section, key, new value].
NUMBERS: list[tuple[str, str, Any]] = [
    ("text_config", "hidden_size", 65),
    ("text_config", "hidden_size", 128),
    ("text_config", "intermediate_size", 97),
    ("text_config", "num_hidden_layers", 1),
    ("text_config", "num_hidden_layers", 3),
    ("text_config", "num_attention_heads", 2),
    ("text_config", "num_attention_heads", 5),
    ("text_config", "num_key_value_heads", 1),
    ("text_config", "num_key_value_heads", 3),
    ("text_config", "head_dim", 16),
    ("text_config", "head_dim", None),
    ("text_config", "vocab_size", 319),
    ("text_config", "vocab_size", 321),
    ("vision_config", "hidden_size", 36),
    ("vision_config", "intermediate_size", 49),
    ("vision_config", "depth", 4),
    ("vision_config", "depth", 2),
    ("vision_config", "num_heads", 3),
    ("vision_config", "num_position_embeddings", 37),
    ("vision_config", "num_position_embeddings", 49),
    ("vision_config", "out_hidden_size", 32),
    ("vision_config", "patch_size", 16),
    ("vision_config", "deepstack_visual_indexes", [2]),
    ("vision_config", "deepstack_visual_indexes", [2, 2]),
    ("vision_config", "deepstack_visual_indexes", [2, 3]),
    ("vision_config", "deepstack_visual_indexes", [2, 1, 0]),
    ("vision_config", "spatial_merge_size", 4),
    ("vision_config", "temporal_patch_size", 1),
    ("vision_config", "in_channels", 1),
]


@pytest.mark.parametrize(("section", "key", "value"), NUMBERS)
def test_a_number_of_another_model_is_an_error(
    broken: Path, edit_json: EditJson, section: str, key: str, value: Any
) -> None:
    edit_json("config.json", lambda config: config[section].update({key: value}))
    with pytest.raises((CheckpointError, ConversionError)) as caught:
        plan_conversion(broken)
    assert caught.value.hint


def test_outtypes_mean_what_llama_cpps_converter_means_by_them(tmp_path: Path) -> None:
    for dtype, auto in (("BF16", "BF16"), ("F16", "F16"), ("F32", "F16")):
        write_checkpoint(tmp_path / dtype, dtype=dtype)
        plan = plan_conversion(tmp_path / dtype)
        assert (plan.outtype, plan.mmproj_outtype) == (auto, auto)
        assert plan_conversion(tmp_path / dtype, outtype="f32").outtype == "F32"


def test_families_are_told_apart_by_their_config() -> None:
    claims = [
        (family.name, architecture, vision)
        for family in FAMILIES
        for architecture in family.architectures
        for vision in family.vision_models
    ]
    assert len({claim[1:] for claim in claims}) == len(claims)
    assert QWEN3_VL in FAMILIES


@pytest.mark.parametrize("key", ["architectures", "text_config", "vision_config"])
def test_an_unknown_architecture_is_told_the_families(
    broken: Path, edit_json: EditJson, key: str
) -> None:
    other: dict[str, Any] = {
        "architectures": ["GPT9ForEverything"],
        "text_config": {"model_type": "gpt9"},
        "vision_config": {"model_type": "gpt9_vision"},
    }
    edit_json("config.json", lambda config: config.update({key: other[key]}))
    with pytest.raises(EdgeVLMError) as caught:
        plan_conversion(broken)
    assert "qwen3_vl" in caught.value.hint
