"""The whole chain on the built-in model: convert, quantize, ask 64 questions at every level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevlm.build.convert import Built, convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.build.resolve import BUILT_IN, built_in_checkpoint, built_in_folder
from edgevlm.drift.prompts import Prompt, read_prompts
from edgevlm.drift.tasks import TaskScore, score_answers
from edgevlm.manifest import FileEntry
from edgevlm.model_dir import open_model_dir
from edgevlm.progress import SILENT, Progress
from edgevlm.runtime.vlm import open_vlm

LEVELS = ("Q8_0", "Q5_K_M", "Q4_K_M")


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One level of the built-in model.

    Attributes:
        text: the text model's file.
        mmproj: the projector's file.
        score: of the 64 questions.
    """

    text: FileEntry
    mmproj: FileEntry
    score: TaskScore


def run_demo(
    folder: Path,
    *,
    n_threads: int | None = None,
    progress: Progress = SILENT,
    on_built: Callable[[Built], None] = lambda built: None,
    on_answer: Callable[[Prompt, str], None] = lambda prompt, answer: None,
) -> list[DemoRow]:
    """Convert and quantize the built-in checkpoint into `folder` and ask every level its questions.

    Args:
        folder: an empty folder for the model directory.
        n_threads: None: one per processor.
        progress: told bytes written and questions answered.
        on_built: told each conversion and quantization.
        on_answer: told the answers of the last level.
    """
    built = convert_model(
        built_in_checkpoint(),
        out=folder,
        name=BUILT_IN,
        outtype="f16",
        n_threads=n_threads,
        progress=progress,
    )
    on_built(built)
    for level in LEVELS:
        plan = plan_quantization(open_model_dir(folder), level=level)
        built = quantize_model(plan, n_threads=n_threads, progress=progress)
        on_built(built)
    entries = {(entry.role, entry.level): entry for entry in built.manifest.files}
    prompts = read_prompts(built_in_folder() / "prompts.jsonl")
    rows: list[DemoRow] = []
    for level in ("F16", *LEVELS):
        text = entries["text", level]
        mmproj = entries["mmproj", "F16" if level == "F16" else "Q8_0"]
        with open_vlm(
            model=folder / text.name, mmproj=folder / mmproj.name, n_threads=n_threads
        ) as vlm:
            score = score_answers(
                vlm,
                prompts,
                folder=built_in_folder(),
                label=f"Asking {level}",
                progress=progress,
                on_answer=on_answer if level == LEVELS[-1] else lambda prompt, answer: None,
            )
        rows.append(DemoRow(text=text, mmproj=mmproj, score=score))
    return rows
