"""Prompts from JSONL."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.drift.prompts import Prompt, read_prompts
from edgevlm.errors import PromptError, SourceNotFoundError


def test_built_in_prompts(shapes_assets: Path) -> None:
    prompts = read_prompts(shapes_assets / "prompts.jsonl")
    assert len(prompts) == 64
    assert all((shapes_assets / prompt.paths[0]).is_file() and prompt.answer for prompt in prompts)
    assert len({prompt.kind for prompt in prompts}) >= 8


def test_optional_fields_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"image": "a.png", "prompt": "What?"}\n\n')
    assert read_prompts(path) == [Prompt(image="a.png", prompt="What?")]


@pytest.mark.parametrize(
    "line", ['{"image": "a.png"}', "not json", '{"image": "a", "prompt": "b", "odd": 1}', "[]"]
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"image": "a.png", "prompt": "What?"}\n' + line)
    with pytest.raises(PromptError, match="line 2"):
        read_prompts(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError):
        read_prompts(tmp_path / "b.jsonl")


def test_a_prompt_may_be_about_several_images_or_none(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"images": ["a.png", "b.png"], "prompt": "Same?", "keywords": ["yes"]}\n'
        '{"prompt": "What is two plus two?"}\n'
    )
    both, none = read_prompts(path)
    assert (both.paths, both.keywords, none.paths) == (("a.png", "b.png"), ("yes",), ())


@pytest.mark.parametrize(
    "line",
    ['{"image": "a.png", "images": ["b.png"], "prompt": "?"}', '{"images": [""], "prompt": "?"}'],
)
def test_a_prompt_names_its_images_in_one_way(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(PromptError, match=r"line 2"):
        read_prompts(path)
