"""The drift report as one self-contained HTML page: no script, no request, nothing to install.

Prompts, answers and file names come from strangers. Jinja escapes every one of them, control
characters are shown as escapes, and the page's own Content-Security-Policy allows nothing but its
one style sheet (by hash) and images that lie inside it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING

from edgevlm.drift import plots, plots_parts, tables, wording
from edgevlm.drift.canvas import require_matplotlib
from edgevlm.drift.difference import Parted, part
from edgevlm.drift.report import ChangedAnswer, DriftReport, LayerDrift, LevelReport

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = "templates"
_MOST_PARTS = 5
_THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, kw_only=True)
class _Example:
    """A changed answer, ready to show."""

    answer: ChangedAnswer
    thumbnail: str
    before: Parted
    after: Parted


@dataclass(frozen=True, kw_only=True)
class _Layers:
    """The heat map of one level, and its heaviest parts."""

    chart: plots.Chart
    heaviest: Sequence[tuple[str, str]]


def render_html(report: DriftReport) -> str:
    """Return the page.

    Raises:
        MissingExtraError: matplotlib is not installed (`require_matplotlib` asks beforehand).
    """
    require_matplotlib()
    css = (files("edgevlm.drift") / _TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = hashlib.sha256(css.encode()).digest()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            css=css,
            style_hash=base64.b64encode(digest).decode("ascii"),
            sentences=[_unbroken(one) for one in wording.verdict_sentences(report)],
            facts=_facts(report),
            rows=tables.glance(report),
            has_tasks=any(level.tasks for level in report.levels),
            charts=_present(
                plots.size_and_kld(report),
                plots.size_and_accuracy(report),
                plots.distribution(report),
                plots.attribution(report),
            ),
            layers=[found for level in report.levels if (found := _layers(level)) is not None],
            reference=plots_parts.reference_stages(report),
            reference_rows=_reference_rows(report),
            examples=[_example(answer) for answer in report.changed],
            groups=tables.numbers(report),
            settings=_settings(report),
            when=_when(report.created),
            kld=wording.kld,
        )
    )


def _environment() -> Environment:
    """Import jinja2 only where a page is made."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        # Markup is ours; every other string may be a stranger's.
        if isinstance(value, str) and not isinstance(value, Markup):
            return wording.clean(value)
        return value

    return Environment(
        loader=PackageLoader("edgevlm.drift", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _unbroken(sentence: str) -> str:
    """Keep numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=%|[kMGT]?B\b)", "\N{NO-BREAK SPACE}", sentence)


def _present(*charts: plots.Chart | None) -> list[plots.Chart]:
    return [chart for chart in charts if chart is not None]


def _facts(report: DriftReport) -> list[tuple[str, str, str]]:
    """Return what a person asks first about the level to take: name, number, what it means."""
    best = wording.best_level(report)
    if best is None:
        return []
    row = tables.glance(report)[report.levels.index(best)]
    answers = best.answers
    kept = (answers.exact + answers.similar) / max(1, answers.n)
    found = [
        ("Size", row.size.text, f"{row.bits.text} bits per weight"),
        ("Mean KLD", row.drift.text, f"95 %: {row.drift.note}"),
        ("Same top token", row.same_top.text, f"95 %: {row.same_top.note}"),
        ("Answers kept", wording.percent(kept), f"{answers.different} of {answers.n} differ"),
    ]
    if not row.accuracy.missing:
        found.append(("Right answers", row.accuracy.text, row.accuracy.note))
    return found


def _layers(level: LevelReport) -> _Layers | None:
    chart = plots_parts.layer_map(level)
    if chart is None:
        return None

    def drift(layer: LayerDrift) -> float:
        return -layer.mean_kld

    heaviest = sorted(level.layers or [], key=drift)[:_MOST_PARTS]
    return _Layers(
        chart=chart,
        heaviest=[(plots_parts.part_name(one), wording.kld(one.mean_kld)) for one in heaviest],
    )


def _reference_rows(report: DriftReport) -> list[tuple[str, Sequence[tables.Cell]]]:
    rows: list[tuple[str, Sequence[tables.Cell]]] = []
    for level in plots.compared(report):
        reference = level.reference
        if reference is None:
            continue
        cells = [
            tables.Cell(text=wording.kld(one.value), note=wording.span(one, wording.kld))
            for one in plots_parts.stages_of(reference)
        ]
        same = reference.same_top_token
        same_top = tables.Cell(
            text=wording.percent(same.value), note=wording.span(same, wording.percent)
        )
        rows.append((level.level, [*cells, same_top]))
    return rows


def _example(answer: ChangedAnswer) -> _Example:
    found = answer.thumbnail or ""
    before, after = part(answer.baseline_answer, answer.answer)
    return _Example(
        answer=answer,
        # Anything else would be a request to somewhere, or markup.
        thumbnail=found if _THUMBNAIL.fullmatch(found) else "",
        before=before,
        after=after,
    )


def _settings(report: DriftReport) -> list[tuple[str, str]]:
    prompts, settings, machine = report.prompts, report.settings, report.machine
    asked = (
        f"{wording.plural(prompts.n_prompts, 'prompt')}: {prompts.n_image_prompts:,} with an image"
        f" ({wording.plural(prompts.n_images, 'image')}), {prompts.n_text_prompts:,} of text alone;"
        f" {prompts.n_with_answer:,} with a known answer"
    )
    led = {
        "baseline": f"along the greedy answers of {report.baseline}",
        "expected": "along the prompts' own answers",
    }[settings.led_along]
    return [
        ("Prompts", asked),
        ("From", prompts.source),
        ("Distributions", f"{led}, at most {settings.max_tokens} tokens each"),
        *_limits(plots.compared(report)),
        (
            "A similar answer",
            f"the same words, or, in answers of more than nine, an edit similarity of at least"
            f" {settings.similar_edit:g} and a token F1 of at least {settings.similar_f1:g}",
        ),
        (
            "Intervals",
            f"95 %, from {settings.bootstrap_draws:,} bootstrap draws over images"
            f" (seed {settings.seed})",
        ),
        (
            "Ran on",
            f"{machine.processor}; {settings.device}, n_ctx {settings.n_ctx:,},"
            f" {wording.plural(settings.n_threads, 'thread')}",
        ),
        ("Processor features", ", ".join(machine.cpu_features) or "none reported"),
        ("Versions", f"edgevlm {machine.edgevlm}, llama-cpp-python {machine.llama_cpp_python}"),
        ("Time", f"{_duration(report.seconds)}, {_when(report.created)}"),
    ]


def _limits(levels: Sequence[LevelReport]) -> list[tuple[str, str]]:
    """Return the limits in words, with the levels that share them."""
    shared: dict[str, list[str]] = {}
    for level in levels:
        verdict = level.verdict
        named = (
            ("mean KLD at most {:g}", verdict.max_mean_kld),
            ("99th percentile at most {:g}", verdict.max_p99_kld),
            ("same top token at least {:.4g} %", _in_percent(verdict.min_same_top_token)),
            ("different answers at most {:.4g} %", _in_percent(verdict.max_share_different)),
        )
        words = ", ".join(word.format(limit) for word, limit in named if limit is not None)
        if words:
            shared.setdefault(f"{words} ({verdict.source})", []).append(level.level)
    if len(shared) == 1:
        return [("Limits", words) for words in shared]
    return [(f"Limits of {wording.listed(names)}", words) for words, names in shared.items()]


def _in_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _when(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
