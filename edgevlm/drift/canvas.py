"""One figure: matplotlib with the page's style, and what all charts of drift need on it."""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.drift.svg import GRID, INK, MUTED, for_page
from edgevlm.drift.wording import clean
from edgevlm.errors import MissingExtraError

# Points of the SVG. A phone shows a figure about as wide as it is, so that the text is legible.
WIDTH, HEIGHT = 380.0, 280.0
FONT = 12.0
SMALL = 11.0
_LINE = 15.0
# Of a label: the width of a letter over the font's size, and how far it may stand out.
_LETTER = 0.62
_BEYOND = 24.0
_NEAR = 9.0
# Where a label goes: right of its point, left, above, below; then farther and farther.
_AROUND = ((8.0, 0.0), (-8.0, 0.0), (0.0, 13.0), (0.0, -13.0))
_UP = tuple((8.0, _LINE * n_lines) for n_lines in range(9))
_AFAR = tuple((8.0, _LINE * (n_lines + 0.5) * way) for n_lines in range(1, 7) for way in (-1, 1))
_LEADER: dict[str, object] = {
    "arrowstyle": "-",
    "color": MUTED,
    "linewidth": 0.8,
    "shrinkA": 1,
    "shrinkB": 4,
}
_LONGEST_NAME = 16
_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True)
class Label:
    """Words beside a point, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def require_matplotlib() -> None:
    """Raise MissingExtraError where no chart can be drawn; ask before anything is measured."""
    try:
        part_of("matplotlib")
    except ImportError as error:
        raise MissingExtraError(
            f"the page's charts need matplotlib: {error}",
            hint='install it: `pip install "edgevlm[report]"`; `--json` and `--markdown` need none',
        ) from error


def part_of(name: str) -> Any:
    """Import a module of matplotlib, whose own types leave its keywords unknown."""
    return importlib.import_module(name)


def draw(
    paint: Callable[[Any], None],
    *,
    name: str,
    label: str,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> str:
    """Return a chart as an `<svg>` element.

    Args:
        paint: draws on the matplotlib Axes that it is given.
        name: of the chart, so that no two on a page share an id.
        label: what a screen reader says.
        width: points.
        height: points.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    buffer = io.StringIO()
    style: dict[str, Any] = {**_STYLE, "svg.hashsalt": name}
    with part_of("matplotlib").rc_context(style), warnings.catch_warnings():
        # A name in a script that its font lacks, or too long for its margin: the browser has
        # fonts of its own, and both are better than no page.
        warnings.simplefilter("ignore", UserWarning)
        size = (width / 72, height / 72)
        figure = part_of("matplotlib.figure").Figure(figsize=size, layout="constrained")
        part_of("matplotlib.backends.backend_svg").FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        metadata = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return for_page(buffer.getvalue(), label=clean(label))


def short(name: str) -> str:
    """Return a level's name as a chart has room for it."""
    name = " ".join(clean(name).split())
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def log_axis(axes: Any, name: str, values: Sequence[float]) -> None:
    """Make the axis `name` ("x" or "y") of positive KLDs logarithmic; few decades get two ticks."""
    ticker = part_of("matplotlib.ticker")
    few = math.log10(max(values) / min(values)) < 2
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 3.0) if few else (1.0,)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(_on_axis))


def size_axis(axes: Any, sizes: Sequence[float]) -> None:
    """Make x logarithmic between the `sizes`, in plain numbers: small levels lie close together."""
    ticker = part_of("matplotlib.ticker")
    low, high = min(sizes), max(sizes)
    axes.set_xscale("log")
    few = high / low < 3
    steps = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    axes.xaxis.set_major_locator(
        ticker.LogLocator(base=10, subs=steps if few else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0))
    )
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(_on_axis))
    room = 1.1 * (high / low) ** 0.06
    axes.set_xlim(low / room, high * room)


def _on_axis(value: float, _: int | None) -> str:
    return tick(value)


def tick(value: float) -> str:
    """Return a tick's number: `0.01`, `1e-5`."""
    text = f"{value:g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def whisker(axes: Any, xs: tuple[float, float], ys: tuple[float, float], *, colour: str) -> None:
    """Draw a 95 % interval, without caps: they say nothing."""
    axes.plot(xs, ys, color=colour, linewidth=1.6, alpha=0.55)


def dot(axes: Any, x: float, y: float, *, colour: str, marker: str = "o") -> None:
    """Draw a point; another marker says again what the colour says."""
    axes.plot([x], [y], marker=marker, markersize=7, color=colour, markeredgewidth=0)


def put_labels(axes: Any, labels: Sequence[Label], *, always_right: bool = False) -> None:
    """Write each label beside its point, on no other label and, where possible, on no point.

    Limits and scales of the axes must be final. `always_right` keeps to the right of the points,
    and moves labels up.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    ends = axes.get_window_extent()
    room = (ends.x0 / scale, ends.x1 / scale + _BEYOND)
    at = axes.transData.transform([(label.x, label.y) for label in labels]) / scale
    points = [_Box.around(x, y) for x, y in at.tolist()]
    placed: list[_Box] = []
    for label, (x, y) in sorted(
        zip(labels, at.tolist(), strict=True), key=lambda one: (one[1][1], one[1][0])
    ):
        width = _LETTER * FONT * len(label.text)
        steps = _UP if always_right else (*_AROUND, *_AFAR)
        boxes = [(step, _Box.beside(x, y, step, width)) for step in steps]
        free = [
            (step, box)
            for step, box in boxes
            if not any(map(box.meets, placed))
            and (
                always_right
                or (
                    box.within(*room)
                    and not any(box.meets(other) for other in points if not other.holds(x, y))
                )
            )
        ]
        step, box = free[0] if free else boxes[-1]
        placed.append(box)
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=step,
            textcoords="offset points",
            ha="left" if step[0] > 0 else "right" if step[0] < 0 else "center",
            va="center",
            color=label.colour,
            annotation_clip=False,
            # From afar a label needs a line to its point.
            arrowprops=_LEADER if abs(step[1]) > _LINE and not always_right else None,
        )


@dataclass(frozen=True, kw_only=True)
class _Box:
    """A rectangle on the figure, in points."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, x: float, y: float) -> _Box:
        """Return where a label would be taken for this point's."""
        return cls(left=x - _NEAR, right=x + _NEAR, low=y - _NEAR, high=y + _NEAR)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in it."""
        return self.left <= x <= self.right and self.low <= y <= self.high

    @classmethod
    def beside(cls, x: float, y: float, step: tuple[float, float], width: float) -> _Box:
        start = x + step[0] - (0 if step[0] > 0 else width if step[0] < 0 else width / 2)
        middle = y + step[1]
        return cls(left=start, right=start + width, low=middle - _LINE / 2, high=middle + _LINE / 2)

    def meets(self, other: _Box) -> bool:
        """Whether the two have a place in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.low < other.high and other.low < self.high

    def within(self, left: float, right: float) -> bool:
        """Whether it lies between two verticals."""
        return left <= self.left and self.right <= right


def grid(axes: Any, axis: str) -> None:
    """Draw the quiet lines of one axis ("x" or "y") and none of the other's spine."""
    axes.grid(axis=axis)
    axes.tick_params(length=0, pad=6)
    axes.spines["left" if axis == "y" else "bottom"].set_visible(False)


def guide(axes: Any, value: float, text: str, *, vertical: bool = False) -> None:
    """Draw a dashed line across the axes, with words on it."""
    if vertical:
        axes.axvline(value, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        place = axes.get_xaxis_transform()
        axes.text(value, 0.02, f"{text} ", ha="right", va="bottom", transform=place, color=MUTED)
        return
    axes.axhline(value, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    place = axes.get_yaxis_transform()
    axes.text(0.0, value, f" {text}", ha="left", va="bottom", transform=place, color=MUTED)
