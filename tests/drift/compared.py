"""A model directory of its own for each test of a comparison, and a few questions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgevlm.drift.passes import Leading
from edgevlm.drift.questions import QuestionSet, gather
from edgevlm.drift.report import DriftReport, LevelReport
from edgevlm.drift.run import CompareOptions
from edgevlm.drift.run import compare as run_compare
from edgevlm.model_dir import open_model_dir


def linked(folder: Path, into: Path) -> Path:
    """Return a copy of a model directory that shares its GGUF files; its manifest may change."""

    def copy(source: str, target: str) -> object:
        return os.link(source, target) if source.endswith(".gguf") else shutil.copy2(source, target)

    return Path(shutil.copytree(folder, into, copy_function=copy))


def write_prompts(path: Path, prompts: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def some_prompts(assets: Path, path: Path, n: int) -> Path:
    """Write the first built-in questions, each with a description, images by absolute path."""
    lines = (assets / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    prompts: list[dict[str, object]] = []
    for line in lines:
        prompt = json.loads(line)
        prompt["image"] = str(assets / prompt["image"])
        described: dict[str, object] = {"image": prompt["image"], "prompt": "Describe the image."}
        prompts += [prompt, described]
    return write_prompts(path, prompts)


def asked(assets: Path, tmp_path: Path, n: int = 3) -> QuestionSet:
    return gather(prompts=some_prompts(assets, tmp_path / "prompts.jsonl", n))


def compare(folder: Path, questions: QuestionSet, *levels: str, **options: object) -> DriftReport:
    """Run a comparison in this process, one thread."""
    given = CompareOptions(
        levels=levels,
        leading=Leading(along="baseline", max_tokens=48),
        n_threads=1,
        device="cpu",
        **options,  # pyright: ignore[reportArgumentType]
    )
    return run_compare(open_model_dir(folder), questions, given)


def level_of(report: DriftReport, level: str) -> LevelReport:
    """Return the last row of a level: behind the baseline's own."""
    return [one for one in report.levels if one.level == level][-1]
