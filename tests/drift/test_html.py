from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgevlm.drift.canvas import require_matplotlib
from edgevlm.drift.html import render_html
from edgevlm.drift.plots import attribution, distribution, size_and_accuracy, size_and_kld
from edgevlm.drift.plots_parts import layer_map, reference_stages
from edgevlm.errors import MissingExtraError
from tests.drift.browser import Page, browser, find_browser
from tests.drift.made_report import LEVELS, LONG_WORD, NASTY_MODEL, made_report


class Outline(HTMLParser):
    """The elements of a page, and whether they nest."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name))]


@pytest.fixture(scope="module")
def whole() -> str:
    return render_html(made_report(model=NASTY_MODEL))


def test_strangers_bring_no_markup(whole: str) -> None:
    outline = Outline(whole)
    assert outline.open == []
    tags = {tag for tag, _ in outline.elements}
    assert not tags & {"script", "iframe", "object", "form", "b", "i"}
    assert not any(name.startswith("on") for _, one in outline.elements for name in one)
    assert "style" not in {name for _, one in outline.elements for name in one}
    # The one thumbnail that is an address elsewhere is left out.
    assert "evil.example" not in whole
    assert all(url.startswith("data:image/") for url in outline.values("src"))
    assert all(url.startswith(("#", "data:,")) for url in outline.values("href"))
    assert "\u202e" not in whole
    assert "\x07" not in whole
    assert "{{ 7*7 }}" in whole


def test_a_page_says_the_verdict_first_and_all_levels(whole: str) -> None:
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", whole.partition("</style>")[2]))
    verdict = "Q8_0, Q6_K, Q5_K_M and Q4_K_M stay within their limits; Q3_K_M and Q2_K drift too"
    assert text.index(verdict) < text.index("Bits per weight")
    for expected in (*LEVELS, "too much drift", "within limits", "within noise", "0.0241"):
        assert expected in text


def test_ids_are_unique_and_labels_lead_somewhere(whole: str) -> None:
    outline = Outline(whole)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    named = [*outline.values("aria-labelledby"), *(one[1:] for one in outline.values("href"))]
    assert {name for name in named if not name.startswith("ata:")} <= set(ids)
    charts = [one for tag, one in outline.elements if tag == "svg" and one.get("role") == "img"]
    assert len(charts) == 7
    assert all(one["aria-label"] for one in charts)
    tables = sum(tag == "table" for tag, _ in outline.elements)
    assert sum(tag == "caption" for tag, _ in outline.elements) == tables
    assert all(one.get("scope") for tag, one in outline.elements if tag == "th")


def test_every_colour_is_a_class_of_the_page(whole: str) -> None:
    classes = {name for value in Outline(whole).values("class") for name in value.split()}
    css = whole.partition("<style>")[2].partition("</style>")[0]
    painted = {name for name in classes if name.startswith(("fill-", "stroke-"))}
    assert {"fill-accent", "stroke-grid", "fill-bad"} <= painted
    assert all(f".{name}" in css for name in painted)
    assert "#00000" not in whole


def test_what_is_missing_is_a_dash_with_its_reason() -> None:
    page = render_html(made_report(tasks=False, layers=False, reference=False, images=False))
    for left_out in ("Which part costs most", "Against the reference", "Right answers"):
        assert left_out not in page
    assert "no projector" in page
    assert re.search("\N{EN DASH}<small[^>]*>not measured</small>", page)


def test_nothing_to_draw_is_no_chart() -> None:
    report = made_report(levels=("F16",), layers=False, reference=False)
    draws = (size_and_kld, size_and_accuracy, distribution, attribution, reference_stages)
    assert [draw(report) for draw in draws] == [None] * len(draws)
    assert layer_map(report.levels[0]) is None
    assert "Only the baseline F16 was measured" in render_html(report)


def test_levels_of_which_no_token_was_scored() -> None:
    report = made_report(layers=False, reference=False, limits=False)
    levels = [one.model_copy(update={"image": None, "text": None}) for one in report.levels]
    for few in (levels, [*report.levels[:3], *levels[3:]]):
        page = render_html(report.model_copy(update={"levels": few}))
        assert "no token to score" in page
    assert "drifts least" in page


def test_limits_are_told_with_the_levels_that_share_them() -> None:
    report = made_report(levels=("F16", "Q8_0", "Q6_K"), layers=False, reference=False)
    together = "mean KLD at most 0.05, same top token at least 90 %, different answers at most 10 %"
    assert f'<dt>Limits</dt><dd dir="auto">{together} (' in render_html(report)
    stricter = report.levels[1].verdict.model_copy(update={"max_mean_kld": 0.01})
    levels = list(report.levels)
    levels[1] = levels[1].model_copy(update={"verdict": stricter})
    page = render_html(report.model_copy(update={"levels": levels}))
    assert '<dt>Limits of Q8_0</dt><dd dir="auto">mean KLD at most 0.01,' in page
    assert '<dt>Limits of Q6_K</dt><dd dir="auto">mean KLD at most 0.05,' in page


def test_a_page_is_the_same_twice() -> None:
    report = made_report(levels=("F16", "Q8_0"), layers=False)
    assert render_html(report) == render_html(report)


@pytest.mark.parametrize("name", ["$x^2$ $", "级别", LONG_WORD, "a\nb\x00", "<b>&"])
def test_a_strange_level_is_drawn(name: str) -> None:
    page = render_html(made_report(levels=("F16", name), layers=False, reference=False))
    assert Outline(page).open == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError) as raised:
        require_matplotlib()
    assert 'pip install "edgevlm[report]"' in raised.value.hint


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if find_browser() is None:
        pytest.skip("no Chromium: `apt-get install chromium`, as .ci/run does")
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(tab: Page, tmp_path: Path, whole: str, width: int, dark: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(whole, encoding="utf-8")
    tab.open(path.as_uri(), width=width, dark=dark)
    assert tab.evaluate("document.title") == f"Drift report: {NASTY_MODEL}"
    assert tab.said() == []
    assert tab.requests() == [path.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    # The style sheet was taken, and charts follow it.
    paper = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == dark
    ink = "getComputedStyle(document.querySelector('.chart text.fill-muted')).fill"
    muted = "getComputedStyle(document.querySelector('figcaption')).color"
    assert tab.evaluate(ink) == tab.evaluate(muted)
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    loaded = "[...document.querySelectorAll('.chart svg')].every(svg => svg.clientHeight > 80)"
    assert tab.evaluate(loaded)


def test_by_keyboard(tab: Page, tmp_path: Path, whole: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(whole, encoding="utf-8")
    tab.open(path.as_uri())
    for kind in ("keyDown", "keyUp"):
        tab.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
    scrolling = "[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0)"
    assert tab.evaluate(scrolling)


def test_the_policy_refuses_what_is_not_the_pages_own(
    tab: Page, tmp_path: Path, whole: str
) -> None:
    """The guard sees: a script and a style that got in are not run, and the console says so."""
    path = tmp_path / "report.html"
    intruder = "<script>document.title = 'x'</script><p style='color: red'>in</p></main>"
    path.write_text(whole.replace("</main>", intruder), encoding="utf-8")
    tab.open(path.as_uri())
    assert tab.evaluate("document.title") == f"Drift report: {NASTY_MODEL}"
    assert len(tab.said()) == 2
