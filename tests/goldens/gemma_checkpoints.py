"""Gemma 3's checkpoints as they were published."""

from __future__ import annotations

from pathlib import Path

from tests.convert.tricks import rename_tensors


def as_published(folder: Path) -> None:
    """Give the vision tower the inner level that transformers 4 wrote, and llama.cpp asks for."""
    rename_tensors(
        folder, lambda name: name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    )
