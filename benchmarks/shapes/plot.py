"""Draw the learning curve of the built-in `shapes` model from the committed logs.

    python benchmarks/shapes/plot.py            # stages.json + log.jsonl -> learning-curve.png
    python benchmarks/shapes/plot.py --table    # stages.json -> the README's table, on stdout

`stages.json` holds the accuracy on held-out questions at the end of each stage, `log.jsonl` what
`train.py` wrote while the last stage ran: losses, and accuracy on validation scenes, which are
more crowded than the held-out ones. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BARS = dict.fromkeys(("colour", "shape", "existence", "count", "position"), 0.95) | {
    "relation": 0.90,
    "count by kind": 0.90,
    "reading": 0.80,
}
KIND_COLOURS = {
    "relation": "#c0392b",
    "reading": "#2456c9",
    "count by kind": "#e08a1e",
    "position": "#2e8b57",
    "existence": "#8e44ad",
    "caption": "#8a8a8a",
}
GUIDE_PANELS = {
    "finding the thing named (row of its cell)": ("mention row", "#2e8b57"),
    "comparing two things (row)": ("relation row", "#c0392b"),
    "first digit under a visual token": ("digit 1", "#2456c9"),
}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log, one per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(stages: list[dict[str, Any]]) -> str:
    """Return the accuracies as Markdown, a row per kind and a column per stage."""
    heads = ["kind", "bar", *(stage["name"] for stage in stages)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kind in stages[-1]["accuracy"]:
        shares = [f"{stage['accuracy'][kind]:.3f}" for stage in stages]
        bar = f"{BARS[kind]:.2f}" if kind in BARS else ""
        lines.append("| " + " | ".join([kind, bar, *shares]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw the picture, or print the table."""
    parser = argparse.ArgumentParser(description="Show how the shapes model learnt.")
    parser.add_argument("--table", action="store_true", help="print the README's table instead")
    stages = json.loads((HERE / "stages.json").read_text(encoding="utf-8"))["stages"]
    if parser.parse_args().table:
        print(table(stages), end="")
        return
    draw(stages, read_log(HERE / "log.jsonl"))


def draw(stages: list[dict[str, Any]], log: list[dict[str, Any]]) -> None:
    """Draw learning-curve.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, kinds, guides) = plt.subplots(1, 3, figsize=(14, 4.2), width_ratios=(1.1, 1, 1))
    _draw_stages(bars, stages)
    _draw_accuracy(kinds, log)
    _draw_guides(guides, log)
    figure.tight_layout()
    figure.savefig(HERE / "learning-curve.png", dpi=90)


def _draw_stages(axes: Any, stages: list[dict[str, Any]]) -> None:
    names = [kind for kind in stages[-1]["accuracy"] if kind != "caption"]
    width = 0.8 / len(stages)
    for i, stage in enumerate(stages):
        at = [j + (i - (len(stages) - 1) / 2) * width for j in range(len(names))]
        shade = _blue(i, len(stages))
        heights = [stage["accuracy"][name] for name in names]
        axes.bar(at, heights, width, color=shade, label=stage["name"])
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_ylim(0, 1.02)
    axes.set_title("Held-out accuracy, stage by stage")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=len(stages), fontsize=8)


def _blue(index: int, count: int) -> str:
    """Return a blue that darkens with the stage."""
    level = 0.8 - 0.6 * index / max(1, count - 1)
    return f"#{int(255 * level):02x}{int(255 * min(1, level + 0.1)):02x}e1"


def _draw_accuracy(axes: Any, log: list[dict[str, Any]]) -> None:
    marks = [record for record in log if "accuracy" in record]
    for kind, colour in KIND_COLOURS.items():
        points = [(r["step"], r["accuracy"][kind]) for r in marks if kind in r["accuracy"]]
        axes.plot(*zip(*points, strict=True), color=colour, label=kind, linewidth=1.6)
    axes.axhline(0.5, color="#c0392b", linewidth=0.7, linestyle=":")
    axes.text(820, 0.475, "a relation, guessed", color="#c0392b", fontsize=7)
    axes.set_ylim(0.3, 1.02)
    axes.set_xlabel("step of the last stage")
    axes.set_title("Accuracy on validation scenes")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)


def _draw_guides(axes: Any, log: list[dict[str, Any]]) -> None:
    losses = [record for record in log if "loss" in record]
    for label, (name, colour) in GUIDE_PANELS.items():
        points = [(r["step"], r["loss"][name]) for r in losses if name in r["loss"]]
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.4)
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 10)
    axes.set_xlabel("step of the last stage")
    axes.set_title("What the inside knows: loss of the guides")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)


if __name__ == "__main__":
    main()
