"""How a drift report looks in a terminal: one table, then the answers that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevlm.drift.report import ChangedAnswer, DriftReport, LevelReport

_N_CHANGED = 3
_N_PARTS = 4
_ANSWER_LETTERS = 300
# From this width on an interval stands beside its number, in the sentence below otherwise.
_WIDE = 112


def show_report(report: DriftReport) -> None:
    """Print the report on stdout, notes included."""
    from edgevlm.cli import console

    out = console.out()
    prompts = report.prompts
    out.print(
        f"{report.model} against its {report.baseline}: {prompts.n_image_prompts} prompts about"
        f" {prompts.n_images} images, {prompts.n_text_prompts} of text alone",
        markup=False,
        soft_wrap=True,
    )
    out.print()
    is_wide = out.width >= _WIDE
    headers = (
        *("level", "size", "bits", "mean KLD (95 %)" if is_wide else "KLD", "top"),
        *("answers", "right", "tok/s", "verdict" if is_wide else ""),
    )
    rows = [_row(level, is_wide=is_wide) for level in report.levels]
    console.table(headers, rows, right=range(1, 8))
    out.print("top: same top token; answers: exact/similar/different", style="dim")
    out.print()
    for level in report.levels:
        _show_verdict(level, is_wide=is_wide)
    _show_reference(report.levels)
    for answer in report.changed[:_N_CHANGED]:
        _show_changed(answer)
    for line in (*prompts.skipped, *report.notes):
        out.print(line, markup=False, soft_wrap=True, style="dim")


def _row(level: LevelReport, *, is_wide: bool) -> tuple[str, ...]:
    from edgevlm.drift.wording import kld
    from edgevlm.files import human_bytes

    tokens, answers, cost = level.tokens, level.answers, level.cost
    found, same = tokens.mean_kld, tokens.same_top_token
    drift = kld(found.value)
    if is_wide:
        drift += f" ({kld(found.low)}-{kld(found.high)})"
    speed = cost.decode_tok_per_sec
    return (
        level.level,
        human_bytes(cost.text_n_bytes + (cost.mmproj_n_bytes or 0)),
        f"{cost.bits_per_weight:.2f}",
        "0" if level.is_baseline else drift,
        "" if level.is_baseline else f"{same.value:.1%}",
        f"{answers.exact}/{answers.similar}/{answers.different}",
        _right(level),
        "" if speed is None else f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}",
        "-" if level.is_baseline else "ok" if level.verdict.within else "OVER",
    )


def _right(level: LevelReport) -> str:
    tasks = level.tasks
    if tasks is None:
        return ""
    share = f"{tasks.n_right}/{tasks.n}"
    if level.is_baseline or (not tasks.lost and not tasks.gained):
        return share
    return share + (" (noise)" if tasks.within_noise else "")


def _show_verdict(level: LevelReport, *, is_wide: bool) -> None:
    from edgevlm.cli import console
    from edgevlm.drift.wording import kld

    if level.is_baseline:
        return
    verdict = level.verdict
    words = "within its limits" if verdict.within else "; ".join(verdict.breaches)
    if not is_wide:
        found = level.tokens.mean_kld
        words += f", mean KLD {kld(found.low)} to {kld(found.high)}"
    console.out().print(
        f"{level.level}: {words}{_blame(level)}",
        style="green" if verdict.within else "bold red",
        markup=False,
        soft_wrap=True,
    )
    if level.tasks is not None and (level.tasks.lost or level.tasks.gained):
        tasks = level.tasks
        noise = "within noise" if tasks.within_noise else f"p = {tasks.p_value:.2g}"
        console.out().print(
            f"  {tasks.lost} answers went wrong and {tasks.gained} right: {noise}",
            markup=False,
            soft_wrap=True,
        )
    _show_layers(level)


def _show_layers(level: LevelReport) -> None:
    """Print the parts of the text model that cost most."""
    from edgevlm.cli import console

    for whole, name in ((True, "blocks"), (False, "roles")):
        parts = [part for part in level.layers or () if (part.block is not None) == whole]
        worst = sorted(parts, key=lambda part: -part.mean_kld)[:_N_PARTS]
        if worst:
            named = ", ".join(
                f"{part.block if whole else part.role} {part.mean_kld:.2g}" for part in worst
            )
            console.out().print(f"  costliest {name}: {named}", markup=False, soft_wrap=True)


def _blame(level: LevelReport) -> str:
    """Return which of the two files the drift comes from, in words."""
    found = level.attribution
    if found is None or found.text_alone is None or found.mmproj_alone is None:
        return ""
    return (
        f" (text model alone {found.text_alone.value:.2g}, mmproj alone"
        f" {found.mmproj_alone.value:.2g})"
    )


def _show_reference(levels: Sequence[LevelReport]) -> None:
    from edgevlm.cli import console

    rows = [
        (
            level.level,
            f"{level.reference.reference_to_baseline.value:.2g}",
            "" if level.is_baseline else f"{level.reference.baseline_to_level.value:.2g}",
            f"{level.reference.reference_to_level.value:.2g}",
        )
        for level in levels
        if level.reference is not None
    ]
    if rows:
        console.out().print()
        headers = ("mean KLD along the reference", "HF to baseline", "to level", "HF to level")
        console.table(headers, rows, right=range(1, 4))


def _show_changed(answer: ChangedAnswer) -> None:
    from edgevlm.cli import console

    out = console.out()
    out.print()
    about = f"{answer.image}  " if answer.image else ""
    out.print(
        console.printable(f"{about}{answer.prompt}  [{answer.level}: {answer.kind}]"),
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    sides = [("baseline", answer.baseline_answer), (answer.level, answer.answer)]
    if answer.expected is not None:
        sides.append(("expected", answer.expected))
    for name, text in sides:
        short = text if len(text) <= _ANSWER_LETTERS else text[: _ANSWER_LETTERS - 3] + "..."
        line = f"  {name}: {' '.join(short.split())}"
        out.print(console.printable(line), markup=False, soft_wrap=True)
