"""Charts of what only some reports have: single layers, and the reference's two stages."""

from __future__ import annotations

import math
from typing import Any

from edgevlm.drift.canvas import SMALL, dot, draw, grid, log_axis, part_of, short, whisker
from edgevlm.drift.plots import Chart, compared
from edgevlm.drift.report import DriftReport, Estimate, LayerDrift, LevelReport, ReferenceDrift
from edgevlm.drift.svg import ACCENT, GRID, INK, MUTED
from edgevlm.drift.wording import kld

_CELL_WIDTH, _CELL_HEIGHT = 17.0, 22.0
_FAINTEST = 0.05
# A narrower map would be magnified beside wide ones.
_LEAST_COLUMNS = 28
# The role of a block as a whole.
_WHOLE = "all"


def layer_map(level: LevelReport) -> Chart | None:
    """Draw the drift of single parts, roles down and blocks across; None where none drifts."""
    layers = level.layers or []
    positive = [layer.mean_kld for layer in layers if layer.mean_kld > 0]
    if not positive:
        return None
    low, high = min(positive), max(positive)
    # Blocks first; a role wherever it stands is a band below them.
    layers = sorted(layers, key=lambda layer: layer.block is None)
    roles = list(dict.fromkeys(layer.role for layer in layers))
    n_blocks = 1 + max((layer.block for layer in layers if layer.block is not None), default=0)

    def shade(layer: LayerDrift) -> float:
        if layer.mean_kld <= 0:
            return 0.0
        span = math.log(high / low) or 1.0
        return _FAINTEST + (1 - _FAINTEST) * math.log(layer.mean_kld / low) / span

    def paint(axes: Any) -> None:
        cells: list[Any] = []
        rectangle = part_of("matplotlib.patches").Rectangle
        for layer in layers:
            row = roles.index(layer.role)
            left, width = (0, n_blocks) if layer.block is None else (layer.block, 1)
            cells.append(rectangle((left + 0.04, row + 0.06), width - 0.08, 0.88))
            if layer.block is None:
                words = kld(layer.mean_kld)
                axes.text(n_blocks / 50, row + 0.5, words, va="center", fontsize=SMALL)
        collection = part_of("matplotlib.collections").PatchCollection
        colours = [(ACCENT, shade(layer)) for layer in layers]
        axes.add_collection(collection(cells, facecolors=colours, linewidths=0))
        axes.add_collection(collection(cells, facecolors="none", edgecolors=GRID, linewidths=0.6))
        axes.set_xlim(0, n_blocks)
        axes.set_ylim(len(roles), 0)
        axes.set_yticks([at + 0.5 for at in range(len(roles))], [_row_name(role) for role in roles])
        step = 1 if n_blocks <= 12 else 4 if n_blocks <= 40 else 8
        blocks = range(0, n_blocks, step)
        axes.set_xticks([block + 0.5 for block in blocks], [str(block) for block in blocks])
        axes.set_xlabel("block")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    in_blocks = [layer.role for layer in layers if layer.block is not None]
    missing = len(in_blocks) < n_blocks * len(set(in_blocks))
    worst = sorted(layers, key=lambda layer: -layer.mean_kld)[:3]
    said = "; ".join(f"{part_name(layer)}: {kld(layer.mean_kld)}" for layer in worst)
    return Chart(
        title=f"{level.level}, part by part",
        caption=f"Mean KLD when that part alone is quantized, from {kld(low)} (faintest) to"
        f" {kld(high)} nats (strongest), on a logarithmic scale."
        + (" A band: that role wherever it stands." if len(in_blocks) < len(layers) else "")
        + (" An empty place was not measured." if missing else ""),
        svg=draw(
            paint,
            name=f"layers-{level.level}",
            label=f"Drift by block and role at {level.level}. Most: {said}.",
            width=110 + _CELL_WIDTH * max(_LEAST_COLUMNS, n_blocks),
            height=50 + _CELL_HEIGHT * len(roles),
        ),
    )


def _row_name(role: str) -> str:
    return "whole block" if role == _WHOLE else short(role)


def part_name(layer: LayerDrift) -> str:
    """Return a part's name in words: `ffn_down of block 3`, `block 3`, `output`."""
    if layer.role == _WHOLE and layer.block is not None:
        return f"block {layer.block}"
    return layer.role if layer.block is None else f"{layer.role} of block {layer.block}"


def stages_of(reference: ReferenceDrift) -> tuple[Estimate, Estimate, Estimate]:
    """Return reference to baseline, baseline to level, reference to level."""
    return (
        reference.reference_to_baseline,
        reference.baseline_to_level,
        reference.reference_to_level,
    )


def reference_stages(report: DriftReport) -> Chart | None:
    """Draw the reference's two stages, and both together; None without a reference."""
    pairs = [(level, level.reference) for level in compared(report)]
    found = [(level, reference) for level, reference in pairs if reference is not None]
    estimates = [estimate for _, reference in found for estimate in stages_of(reference)]
    values = [estimate.value for estimate in estimates if estimate.value > 0]
    if not values:
        return None
    floor = min(values) / 2
    baseline = short(report.baseline)
    stages = (
        (MUTED, "s", f"reference to {baseline}"),
        (INK, "o", f"{baseline} to level"),
        (ACCENT, "D", "reference to level"),
    )
    close = {"handletextpad": 0.2, "columnspacing": 1.0, "fontsize": SMALL}

    def paint(axes: Any) -> None:
        for row, (_, reference) in enumerate(found):
            for at, (estimate, (colour, marker, _)) in enumerate(
                zip(stages_of(reference), stages, strict=True)
            ):
                x, y = max(floor, estimate.value), row + 0.22 * (at - 1)
                ends = (max(floor, estimate.low), max(floor, estimate.high))
                whisker(axes, ends, (y, y), colour=colour)
                dot(axes, x, y, colour=colour, marker=marker)
        line = part_of("matplotlib.lines").Line2D
        keys = [
            line([], [], color=colour, marker=marker, linestyle="none", label=words)
            for colour, marker, words in stages
        ]
        axes.figure.legend(handles=keys, loc="outside upper left", ncols=3, frameon=False, **close)
        axes.set_yticks(range(len(found)), [short(level.level) for level, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.6)
        axes.set_xlabel("mean KLD, nats")
        log_axis(axes, "x", [floor, *values])
        axes.margins(x=0.06)
        grid(axes, "x")

    return Chart(
        title="From the checkpoint to the level",
        caption="How far the converted baseline is from the reference, the level from the baseline,"
        " and the level from the reference, along the reference's answers.",
        svg=draw(
            paint,
            name="reference",
            label="Two stages of drift; the numbers are in the table beside.",
            height=60 + 46 * len(found),
        ),
    )
