from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from xml.etree import ElementTree

import pytest

from edgevlm.drift.plots import Chart, attribution, distribution, size_and_accuracy, size_and_kld
from edgevlm.drift.plots_parts import layer_map, part_name, reference_stages
from edgevlm.drift.report import DriftReport, Estimate
from edgevlm.drift.svg import for_page
from tests.drift.made_report import LEVELS, made_report

_FONT, _LETTER = 12, 0.55


def texts(chart: Chart | None) -> dict[str, tuple[float, float, float]]:
    """Return where each text of a chart begins and ends, and its height on the page."""
    assert chart is not None
    found: dict[str, tuple[float, float, float]] = {}
    for element in ElementTree.fromstring(chart.svg).iter("text"):
        text, x, y = element.text or "", float(element.attrib["x"]), float(element.attrib["y"])
        width = _FONT * _LETTER * len(text)
        left = {"start": x, "middle": x - width / 2, "end": x - width}
        start = left[element.get("text-anchor", "start")]
        found[text] = (start, start + width, y)
    return found


@pytest.mark.parametrize("draw", [size_and_kld, size_and_accuracy, distribution])
def test_no_level_stands_on_another(draw: Callable[[DriftReport], Chart | None]) -> None:
    where = texts(draw(made_report()))
    drawn = [level for level in LEVELS if level in where]
    assert len(drawn) >= 6
    for one, other in combinations(drawn, 2):
        left, right, y = where[one]
        other_left, other_right, other_y = where[other]
        beside = right <= other_left or other_right <= left
        assert beside or abs(y - other_y) >= 0.9 * _FONT, (one, other)


def changed(report: DriftReport, at: int, **parts: Estimate | None) -> DriftReport:
    levels = list(report.levels)
    found = levels[at].attribution
    assert found is not None
    levels[at] = levels[at].model_copy(update={"attribution": found.model_copy(update=parts)})
    return report.model_copy(update={"levels": levels})


def test_a_wide_interval_stays_on_the_chart() -> None:
    wide = Estimate(value=0.5, low=0.0, high=90.0)
    where = texts(attribution(changed(made_report(), 1, mmproj_alone=wide)))
    assert "projector 0.500" in where
    assert all(left >= 0 and right < 400 for left, right, _ in where.values())


def test_parts_without_a_number_have_no_bar() -> None:
    where = texts(attribution(changed(made_report(levels=("F16", "Q8_0")), 1, mmproj_alone=None)))
    assert not any(text.startswith("projector") for text in where)
    zero = Estimate(value=0, low=0, high=0)
    report = changed(
        made_report(levels=("F16", "Q8_0")), 1, text_alone=zero, mmproj_alone=zero, both=zero
    )
    assert attribution(report) is None


def test_what_costs_most_is_said() -> None:
    blocks, grid = (layer_map(made_report().levels[at]) for at in (4, 6))
    assert blocks is not None
    assert grid is not None
    assert "Most: block 0: 0.00530; output: 0.00482" in blocks.svg
    assert "Most: ffn_down of block 0: 0.152" in grid.svg
    assert "An empty place was not measured." in grid.caption
    assert "An empty place" not in blocks.caption
    assert {"whole block", "token_embd"} <= set(texts(blocks))
    layers = made_report().levels[4].layers
    assert layers is not None
    assert part_name(layers[0]) == "block 0"


def test_the_reference_is_drawn_stage_by_stage() -> None:
    where = texts(reference_stages(made_report()))
    assert {"reference to F16", "F16 to level", "reference to level"} <= set(where)


def test_an_equal_level_has_its_place() -> None:
    """A level without any drift beside one with some: the logarithm has no 0."""
    report = made_report(levels=("F16", "Q8_0", "Q6_K"))
    levels = list(report.levels)
    levels[1] = levels[1].model_copy(update={"image": levels[0].image, "text": levels[0].text})
    where = texts(size_and_kld(report.model_copy(update={"levels": levels})))
    assert where["Q8_0"][2] > where["Q6_K"][2]  # downwards


def test_styles_become_classes_and_attributes() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        ' width="9pt"><metadata/><defs><style>*{}</style><path id="m" d="M 0 0&#10;L 1 1"/></defs>'
        '<g id="a"><use xlink:href="#m" style="fill: #000004; stroke: none; opacity: 0.5;'
        ' font-family: x"/></g></svg>'
    )
    assert for_page(svg, label='"<x>"') == (
        '<svg role="img" aria-label="&quot;&lt;x&gt;&quot;"><defs><path id="m" d="M 0 0 L 1 1" />'
        '</defs><g><use href="#m" stroke="none" opacity="0.5" class="fill-accent" /></g></svg>'
    )
