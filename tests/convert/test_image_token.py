"""The id of the image token in config.json is held against the tokenizer, of every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.families import FAMILIES

from tests.convert.tricks import error_of
from tests.goldens.recipes import RECIPES

Golden = Callable[[str], Path]
KEYS = ("image_token_id", "image_token_index")
every_golden = pytest.mark.parametrize("name", RECIPES)


def with_id(folder: Path, key: str, value: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, key: value}), encoding="utf-8")
    return folder


def image_token(folder: Path) -> tuple[str, int] | None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return next(((key, config[key]) for key in KEYS if key in config), None)


@every_golden
def test_another_token_is_named(golden: Golden, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(golden(name), tmp_path / "checkpoint"))
    if (found := image_token(folder)) is None:
        pytest.skip("this class's config.json has no such key")
    key, number = found
    family = next(one for one in FAMILIES if one.name == plan_conversion(folder).family)
    error = error_of(with_id(folder, key, number - 1))
    assert f"`{key}` is {number - 1}, and token {number - 1} is" in error.message
    assert f"not the image token `{family.placeholder}`" in error.message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10**9, "expected an integer from 0 to"),
        (-200, "expected an integer from 0 to"),
        (True, "expected an integer from 0 to"),
        ("5", "expected an integer from 0 to"),
        (1 << 19, "is 524288, outside of the vocabulary of"),
    ],
)
def test_no_token_at_all(golden: Golden, tmp_path: Path, value: object, message: str) -> None:
    folder = Path(shutil.copytree(golden("qwen3_vl"), tmp_path / "checkpoint"))
    error = error_of(with_id(folder, "image_token_id", value))
    assert "image_token_id" in error.message
    assert message in error.message


def test_without_the_key_nothing_is_checked(golden: Golden, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden("qwen3_vl"), tmp_path / "checkpoint"))
    plan_conversion(with_id(folder, "image_token_id", None))
