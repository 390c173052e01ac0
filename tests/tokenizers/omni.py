"""Qwen2.5-Omni's tokenizer: Qwen2-VL's, whose visual tokens have other names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.synthetic import write_tokenizer

NAMES = {
    "<|vision_start|>": "<|vision_bos|>",
    "<|vision_end|>": "<|vision_eos|>",
    "<|image_pad|>": "<|IMAGE|>",
    "<|video_pad|>": "<|VIDEO|>",
}


def write_tokenizer_omni(folder: Path, *, n_tokens: int = 300) -> None:
    """Write the tokenizer's files, its chat template among them."""
    write_tokenizer(folder, n_tokens=n_tokens)
    rename_tokens(folder, NAMES)


def as_qwen2(folder: Path) -> None:
    """Give a tokenizer's visual tokens Qwen2-VL's names."""
    rename_tokens(folder, {new: old for old, new in NAMES.items()})


def rename_tokens(folder: Path, names: Mapping[str, str]) -> None:
    """Give tokens other names in a tokenizer's files."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / file).read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(old, new)
        (folder / file).write_text(text, encoding="utf-8")
