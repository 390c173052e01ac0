"""The drift report as a table for a model card, in GitHub's Markdown (github.github.com/gfm)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgevlm.drift.report import DriftReport
from edgevlm.drift.tables import Cell, GlanceRow, glance
from edgevlm.drift.wording import clean, plural, verdict_sentences

# Each of these can begin markup, an HTML tag, an entity, a mention or a bare link.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~#&@!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def render_markdown(report: DriftReport) -> str:
    """Return the table at a glance, with the verdict above and how to read it below."""
    lines = [
        *[escape(sentence) for sentence in verdict_sentences(report)],
        "",
        *_table(report),
        "",
        _reading(report),
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return `text` as Markdown that shows exactly it, on one line."""
    one_line = " ".join(clean(text).split())
    escaped = _SPECIAL.sub(r"\\\g<0>", one_line)
    return re.sub(r"(?i)\b(https?|ftp|www|mailto)([:.])", r"\1\\\2", escaped)


def _table(report: DriftReport) -> list[str]:
    rows = glance(report)
    has_tasks = any(level.tasks for level in report.levels)
    has_speed = any(not row.speed.missing for row in rows)
    names = [
        "level",
        "size",
        "bits/weight",
        "mean KLD",
        "same top token",
        "same / similar / different",
        *(["right answers"] if has_tasks else []),
        *(["tok/s"] if has_speed else []),
        "verdict",
    ]
    texts = {"level", "verdict"}
    lines = [
        _line(names),
        _line(["---" if name in texts else "---:" for name in names]),
    ]
    lines.extend(_line(_cells(row, has_tasks=has_tasks, has_speed=has_speed)) for row in rows)
    return lines


def _cells(row: GlanceRow, *, has_tasks: bool, has_speed: bool) -> list[str]:
    return [
        escape(row.level),
        row.size.text,
        row.bits.text,
        _with_note(row.drift),
        _with_note(row.same_top),
        " / ".join(map(str, row.answers)),
        *([_with_note(row.accuracy)] if has_tasks else []),
        *([row.speed.text] if has_speed else []),
        f"**{row.verdict}**" if row.tone == "bad" else row.verdict,
    ]


def _with_note(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _reading(report: DriftReport) -> str:
    prompts = report.prompts
    asked = f"{plural(prompts.n_prompts, 'prompt')}, {plural(prompts.n_images, 'image')}"
    return (
        f"Measured with edgevlm {escape(report.machine.edgevlm)} against"
        f" {escape(report.baseline)} on {asked}; in brackets 95 % intervals. Mean KLD: how far the"
        " next-token probabilities are from the baseline's, in nats, 0 being the same model. Same"
        " top token: how often both find the same token most likely. Size: text model and"
        f" projector. Speed: on {escape(report.machine.processor)},"
        f" {plural(report.settings.n_threads, 'thread')}."
    )
