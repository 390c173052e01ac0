"""Cosmos 3: its reasoner is taken under every name, its other towers are left out by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from edgevlm_convert import plan_conversion

from edgevlm.errors import ConversionError
from tests.convert.tricks import rename_tensors
from tests.goldens.recipes.cosmos3_omni import EXTRA, nested

Golden = Callable[[str], Path]


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy of the golden to change."""
    return Path(shutil.copytree(golden("cosmos3_omni"), tmp_path / "checkpoint"))


def test_what_makes_videos_sound_and_actions_is_left_out_by_name(checkpoint: Path) -> None:
    ledger = plan_conversion(checkpoint).ledger
    assert set(ledger.dropped) == set(EXTRA)
    assert len(set(ledger.dropped.values())) == 1
    assert not set(ledger.used) & set(EXTRA)


def _qwen3_vl(name: str) -> str:
    if name in EXTRA:
        return f"model.language_model.{name}" if name.startswith("layers.") else name
    return nested(name)


def _older(name: str) -> str:
    """Qwen3-VL's names for attention, at the root all the same."""
    return _qwen3_vl(name).removeprefix("model.language_model.").removeprefix("model.visual.")


@pytest.mark.parametrize("rename", [_qwen3_vl, _older])
def test_other_names_of_the_same_tensors(checkpoint: Path, rename: Callable[[str], str]) -> None:
    flat = plan_conversion(checkpoint)
    rename_tensors(checkpoint, rename)
    other = plan_conversion(checkpoint)
    for one, two in ((flat.text, other.text), (flat.mmproj, other.mmproj)):
        assert {tensor.info for tensor in one.tensors} == {tensor.info for tensor in two.tensors}


@pytest.mark.parametrize("name", ["layers.0.self_attn.add_x_proj.weight", "video_proj.weight"])
def test_a_tensor_of_no_known_tower_is_named(checkpoint: Path, name: str) -> None:
    rename_tensors(checkpoint, lambda old: name if old == "proj_out.weight" else old)
    with pytest.raises(ConversionError, match=name):
        plan_conversion(checkpoint)
