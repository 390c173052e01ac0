"""The charts of a drift report: size against drift and accuracy, and where the drift comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.drift.canvas import (
    HEIGHT,
    SMALL,
    Label,
    dot,
    draw,
    grid,
    guide,
    log_axis,
    put_labels,
    short,
    size_axis,
    whisker,
)
from edgevlm.drift.report import DriftReport, Estimate, LevelReport, TokenDrift
from edgevlm.drift.svg import ACCENT, BAD, GRID, INK, MUTED
from edgevlm.drift.wording import drift_of, kld, n_bytes_of, percent
from edgevlm.files import human_bytes

# A quantile below this is drawn at it: the logarithm of nothing has no place.
_LEAST_KLD = 1e-6
_BAR = 13.0
# So many lines need room, and stand beside as many bars.
_MANY = 4
# On the axis of shares, in per cent: where bars are cut, and where their numbers stand.
_END, _NUMBERS = 122.0, 130.0
_TICK_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure of the page.

    Attributes:
        title: what it shows.
        caption: how to read it.
        svg: an `<svg>` element.
    """

    title: str
    caption: str
    svg: str


def compared(report: DriftReport) -> list[LevelReport]:
    """Return the levels but the baseline."""
    return [level for level in report.levels if not level.is_baseline]


def _scored(report: DriftReport) -> list[tuple[LevelReport, TokenDrift]]:
    """Return the levels but the baseline whose tokens could be scored, the least drift first."""
    found = [(one, drift) for one in compared(report) if (drift := drift_of(one)) is not None]
    return sorted(found, key=lambda one: one[1].mean_kld.value)


def size_and_kld(report: DriftReport) -> Chart | None:
    """Draw size against mean KLD; None where nothing drifts, or nothing was compared."""
    scored = _scored(report)
    levels = [level for level, _ in scored]
    positive = [drift.mean_kld.value for _, drift in scored if drift.mean_kld.value > 0]
    if not positive:
        return None
    floor = min(positive) / 3
    limits = {level.verdict.max_mean_kld for level in levels}
    limit = limits.pop() if len(limits) == 1 else None
    unit, divisor = _size_unit(report)

    def paint(axes: Any) -> None:
        found = sorted(
            ((n_bytes_of(level) / divisor, level, drift.mean_kld) for level, drift in scored),
            key=lambda one: one[0],
        )
        heights = [max(floor, mean.value) for _, _, mean in found]
        axes.plot([x for x, _, _ in found], heights, color=GRID, linewidth=1.2)
        for (x, level, mean), y in zip(found, heights, strict=True):
            ends = (max(floor, mean.low), max(floor, mean.high))
            whisker(axes, (x, x), ends, colour=_colour(level))
            dot(axes, x, y, colour=_colour(level), marker=_marker(level))
        axes.set_xlabel(f"size of text model and projector, {unit}")
        axes.set_ylabel("mean KLD, nats")
        axes.margins(y=0.14)
        size_axis(axes, [n_bytes_of(level) / divisor for level in report.levels])
        log_axis(axes, "y", [*positive, *([limit] if limit else [])])
        _guide_baseline(axes, report, divisor)
        if limit:
            guide(axes, limit, f"limit {limit:g}")
        grid(axes, "y")
        labels = zip(found, heights, strict=True)
        put_labels(axes, [_label(x, y, level) for (x, level, _), y in labels])

    said = "; ".join(
        f"{level.level}: {human_bytes(n_bytes_of(level))}, {kld(drift.mean_kld.value)}"
        for level, drift in scored
    )
    return Chart(
        title="Size against drift",
        caption="Lower is closer to the baseline, on a logarithmic scale. Strokes are 95 %"
        " intervals"
        + (", crosses mark levels beyond their limits." if BAD in map(_colour, levels) else "."),
        svg=draw(paint, name="size-kld", label=f"Size against mean KLD in nats. {said}."),
    )


def size_and_accuracy(report: DriftReport) -> Chart | None:
    """Draw size against accuracy; None where no prompt carries an answer."""
    levels = [(level, level.tasks) for level in report.levels]
    found = [(n_bytes_of(level), level, tasks) for level, tasks in levels if tasks is not None]
    if len(found) < 2:
        return None
    unit, divisor = _size_unit(report)
    found.sort(key=lambda one: one[0])

    def paint(axes: Any) -> None:
        sizes = [size / divisor for size, _, _ in found]
        rights = [100 * tasks.accuracy.value for _, _, tasks in found]
        axes.plot(sizes, rights, color=GRID, linewidth=1.2)
        for x, y, (_, level, tasks) in zip(sizes, rights, found, strict=True):
            colour = MUTED if level.is_baseline else _colour(level)
            ends = (100 * tasks.accuracy.low, 100 * tasks.accuracy.high)
            whisker(axes, (x, x), ends, colour=colour)
            dot(axes, x, y, colour=colour, marker=_marker(level))
            if level.is_baseline:
                axes.axhspan(*ends, color=MUTED, alpha=0.1, linewidth=0)
        axes.set_xlabel(f"size of text model and projector, {unit}")
        axes.set_ylabel("right answers, %")
        axes.margins(y=0.1)
        size_axis(axes, sizes)
        grid(axes, "y")
        labels = zip(sizes, rights, found, strict=True)
        put_labels(axes, [_label(x, y, level) for x, y, (_, level, _) in labels])

    said = "; ".join(
        f"{level.level}: {percent(tasks.accuracy.value)}" for _, level, tasks in reversed(found)
    )
    return Chart(
        title="Size against accuracy",
        caption="Strokes are 95 % intervals; the band is the baseline's. What lies within it cannot"
        " be told from the baseline by so many questions.",
        svg=draw(paint, name="size-accuracy", label=f"Size against accuracy. {said}."),
    )


def distribution(report: DriftReport) -> Chart | None:
    """Draw the KLD of all positions, sorted, a line a level; None where nothing drifts."""
    levels = [one for one in _scored(report) if max(one[1].kld_quantiles, default=0) > 0]
    if not levels:
        return None
    height = HEIGHT if len(levels) < _MANY else 1.25 * HEIGHT

    def paint(axes: Any) -> None:
        labels: list[Label] = []
        values: list[float] = []
        for index, (level, drift) in enumerate(levels):
            heights = [max(_LEAST_KLD, value) for value in drift.kld_quantiles]
            shares = [at / max(1, len(heights) - 1) for at in range(len(heights))]
            shade = 0.45 + 0.55 * (index + 1) / len(levels)
            axes.plot(shares, heights, color=_colour(level), linewidth=1.8, alpha=shade)
            labels.append(_label(shares[-1], heights[-1], level))
            values.extend(heights)
        axes.set_xlim(0, 1.0)
        axes.set_xticks(_TICK_SHARES, [f"{100 * share:.0f}" for share in _TICK_SHARES])
        axes.set_xlabel("share of positions, %")
        axes.set_ylabel("KLD of a position, nats")
        log_axis(axes, "y", values)
        axes.grid(axis="x")
        grid(axes, "y")
        put_labels(axes, labels, always_right=True)

    said = "; ".join(
        f"{level.level}: median {kld(drift.median_kld)}, 99th percentile {kld(drift.p99_kld)},"
        f" maximum {kld(drift.max_kld)}"
        for level, drift in levels
    )
    return Chart(
        title="Distribution over positions",
        caption="At 90, a tenth of the answers' tokens drift more than the line's height: a steep"
        " right end means few tokens that change much.",
        svg=draw(
            paint,
            name="distribution",
            label=f"Distribution of the KLD. {said}.",
            height=height,
        ),
    )


def attribution(report: DriftReport) -> Chart | None:
    """Draw what the text model and the projector each cost, as shares of both together."""
    pairs = [(level, _bars(level)) for level in compared(report)]
    found = [(level, bars) for level, bars in pairs if any(bar.value > 0 for _, bar in bars)]
    if not found:
        return None
    return Chart(
        title="Text model or projector?",
        caption="Drift on image prompts when one part alone is quantized, as a share of the drift"
        " of both; the numbers are mean KLD in nats. An arrow: the interval goes on.",
        svg=draw(
            lambda axes: _paint_bars(axes, found),
            name="attribution",
            label="Drift by quantized part. " + "; ".join(_said(*one) for one in found) + ".",
            height=60 + sum(_BAR * (len(bars) + 1.1) for _, bars in found),
        ),
    )


def _bars(level: LevelReport) -> list[tuple[str, Estimate]]:
    parts = level.attribution
    if parts is None:
        return []
    named = (
        ("text model", parts.text_alone),
        ("projector", parts.mmproj_alone),
        ("both", parts.both),
    )
    return [(name, estimate) for name, estimate in named if estimate is not None]


def _said(level: LevelReport, bars: Sequence[tuple[str, Estimate]]) -> str:
    return f"{level.level}: " + ", ".join(f"{name} {kld(bar.value)}" for name, bar in bars)


def _paint_bars(
    axes: Any, found: Sequence[tuple[LevelReport, Sequence[tuple[str, Estimate]]]]
) -> None:
    shades = {"text model": (ACCENT, 1.0), "projector": (ACCENT, 0.45), "both": (MUTED, 0.4)}
    y, ticks = 0.0, list[float]()
    for _, bars in found:
        whole = dict(bars).get("both") or max((bar for _, bar in bars), key=lambda bar: bar.value)
        scale = 100 / (whole.value or max(bar.value for _, bar in bars))
        ticks.append(y + (len(bars) - 1) / 2)
        for name, bar in bars:
            colour, shade = shades[name]
            length, high = bar.value * scale, bar.high * scale
            axes.barh(y, min(length, _END), height=0.78, color=colour, alpha=shade, linewidth=0)
            whisker(axes, (bar.low * scale, min(high, _END)), (y, y), colour=INK)
            if max(length, high) > _END:
                dot(axes, _END, y, colour=MUTED, marker=">")
            axes.text(_NUMBERS, y, f"{name} {kld(bar.value)}", va="center", fontsize=SMALL)
            y += 1
        y += 1.1
    axes.set_yticks(ticks, [short(level.level) for level, _ in found])
    axes.set_ylim(y - 1.1, -0.8)
    axes.set_xlim(0, 205)
    axes.set_xticks([0, 50, 100], ["0", "50", "100 %"])
    axes.set_xlabel("share of the drift of both", loc="left")
    grid(axes, "x")


def _label(x: float, y: float, level: LevelReport) -> Label:
    return Label(x=x, y=y, text=short(level.level), colour=INK)


def _guide_baseline(axes: Any, report: DriftReport, divisor: float) -> None:
    if report.levels[0].is_baseline:
        size = n_bytes_of(report.levels[0]) / divisor
        guide(axes, size, f"{short(report.baseline)}: no drift", vertical=True)


def _colour(level: LevelReport) -> str:
    return ACCENT if level.verdict.within else BAD


def _marker(level: LevelReport) -> str:
    return "o" if level.verdict.within else "X"


def _size_unit(report: DriftReport) -> tuple[str, float]:
    largest = max(n_bytes_of(level) for level in report.levels)
    return ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
