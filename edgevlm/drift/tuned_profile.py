"""What the measurements of `edgevlm tune` come to: projector type, number of threads, profile."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from edgevlm.drift.tune import Measured, ProjectorRow, TextRow
from edgevlm.errors import QuantizationError
from edgevlm.files import write_together

# The question that threads are chosen for: an image, some words, an answer of two sentences.
N_QUESTION_TOKENS, N_ANSWER_TOKENS = 32, 64
# Slower by no more than this is as fast, and the smaller file wins: medians are no better.
_AS_FAST = 1.05


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What answers fastest.

    Attributes:
        projector: the type.
        text: the level that the profile extends, as it was measured.
        n_threads: for all of it.
        seconds: that an answer about one image is expected to take, by the number of threads.
    """

    projector: ProjectorRow
    text: TextRow
    n_threads: int
    seconds: dict[int, float]


def choose(measured: Measured, *, level: str, min_cosine: float) -> Choice:
    """Return the fastest projector type within the bound, and the best number of threads.

    Args:
        measured: all numbers.
        level: of the text model, that answers are expected from; the first one measured where it
            was not.
        min_cosine: that the worst visual token may have.

    Raises:
        QuantizationError: no type is within the bound, or no level could be measured.
    """
    within = [row for row in measured.projectors if row.seconds and row.min_cosine >= min_cosine]
    texts = [row for row in measured.texts if row.speeds]
    if not within:
        best = max((row.min_cosine for row in measured.projectors), default=-1.0)
        raise QuantizationError(
            f"no projector type keeps a cosine of {min_cosine} (the best: {best:.4f})",
            hint="ask for less with --min-cosine, or name more types with --mmproj-levels",
        )
    if not texts:
        problems = "; ".join(f"{row.level}: {row.problem}" for row in measured.texts)
        raise QuantizationError(
            f"no level of the text model could be measured ({problems or 'none was named'})",
            hint="name others with --levels",
        )
    text = next((row for row in texts if row.level == level), texts[0])
    words = {
        count: (measured.n_visual_tokens + N_QUESTION_TOKENS) / speed.prefill
        + N_ANSWER_TOKENS / speed.decode
        for count, speed in text.speeds.items()
    }
    # One number of threads serves both: the type is the fastest at that number.
    totals = [(row.seconds[n] + words[n], n) for row in within for n in words]
    n_threads = min(totals)[1]
    fastest = min(row.seconds[n_threads] for row in within)
    as_fast = [row for row in within if row.seconds[n_threads] <= _AS_FAST * fastest]
    projector = min(as_fast, key=lambda row: row.n_bytes)
    seconds = {count: projector.seconds[count] + words[count] for count in words}
    return Choice(projector=projector, text=text, n_threads=n_threads, seconds=seconds)


def plain_name(name: str) -> str:
    """Return a model's or file's name as a profile can be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def write_profile(
    path: Path, *, name: str, level: str, choice: Choice, machine: str, force: bool
) -> None:
    """Write a profile that extends `level` with the projector type chosen.

    Args:
        path: the TOML file.
        name: of the profile.
        level: a level's name, or that of a profile in the same folder.
        choice: what was chosen.
        machine: what it was measured on.
        force: replace the file.

    Raises:
        OutputExistsError: it exists, and `force` is not set.
        OutputError: it cannot be written.
    """
    row = choice.projector
    comment = re.sub(r"[^\x20-\x7e]+", " ", f"{machine}; best with --threads {choice.n_threads}")
    text = (
        f"# Made by `edgevlm tune`. Measured on {comment}.\n"
        f"name = {json.dumps(name)}\n"
        f'description = "{level} with the projector as {row.level}, the fastest on the machine it'
        f' was tuned on."\n'
        f"extends = {json.dumps(level)}\n\n"
        "[mmproj]\n"
        f"# {row.seconds[choice.n_threads] * 1e3:.1f} ms an image; cosine of the worst visual token"
        f" {row.min_cosine:.5f}.\n"
        f"type = {json.dumps(row.level)}\n"
    )
    folder = path.absolute().parent
    with write_together(folder, names=[path.name], n_bytes=len(text), force=force) as output:
        output.create(path.name).write_text(text, encoding="utf-8")
