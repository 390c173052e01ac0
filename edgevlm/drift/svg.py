"""matplotlib's SVG for a page with a strict policy, in the page's own colours.

The page allows no inline style, so that nothing that a stranger wrote can bring any: every style
becomes an attribute, every colour a class of the page's style sheet, which knows light and dark.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

# What a chart draws with; black variants that no eye tells apart, in case a class is missing.
COLOURS = {
    "#000001": "ink",
    "#000002": "muted",
    "#000003": "grid",
    "#000004": "accent",
    "#000005": "bad",
    "#000006": "good",
    "#000007": "paper",
}
INK, MUTED, GRID, ACCENT, BAD, GOOD, PAPER = COLOURS
_KEPT = frozenset(
    (
        "fill-opacity",
        "font-size",
        "font-weight",
        "opacity",
        "stroke-dasharray",
        "stroke-dashoffset",
        "stroke-linecap",
        "stroke-linejoin",
        "stroke-opacity",
        "stroke-width",
        "text-anchor",
    )
)
_REFERENCE = re.compile(r"#([\w.-]+)")


def for_page(svg: str, *, label: str) -> str:
    """Return matplotlib's `svg` as an element for the page.

    Args:
        svg: a document; its text is text (`svg.fonttype` "none").
        label: what a screen reader says in its place.
    """
    root = ElementTree.fromstring(svg)
    _plain_names(root)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    referenced = {
        found
        for element in root.iter()
        for value in element.attrib.values()
        for found in _REFERENCE.findall(value)
    }
    for element in root.iter():
        _restyle(element)
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    for element in root.iter():
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
    return ElementTree.tostring(root, encoding="unicode")


def _plain_names(root: ElementTree.Element) -> None:
    """Drop the namespaces, which HTML gives by itself."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            plain = name.rpartition("}")[2]
            if plain != name:
                element.set(plain, element.attrib.pop(name))


def _restyle(element: ElementTree.Element) -> None:
    classes: list[str] = []
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = (piece.strip() for piece in declaration.partition(":"))
        if name in ("fill", "stroke") and value in COLOURS:
            classes.append(f"{name}-{COLOURS[value]}")
        elif (name in ("fill", "stroke") and value == "none") or name in _KEPT:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
