"""Grids that an image is scaled into before it is cut into tiles ("anyres")."""

from __future__ import annotations

from typing import cast

from edgevlm_convert.config import Section

_KEY = "image_grid_pinpoints"
_MAX_GRIDS, _MAX_SIDE = 256, 1 << 15


def read_grids(section: Section, side: int) -> list[int]:
    """Return the widths and heights that images are scaled into, one after the other.

    Args:
        section: whose `image_grid_pinpoints` has pairs of height and width.
        side: of a tile in pixels.

    Raises:
        CheckpointError: a grid is not of whole tiles.
    """
    expected = f"heights and widths in whole tiles of {side} pixels"
    found = section.raw(_KEY)
    if not isinstance(found, list) or not 0 < len(cast(list[object], found)) <= _MAX_GRIDS:
        section.fail(_KEY, expected)
    flat: list[int] = []
    for entry in cast(list[object], found):
        numbers = cast(list[object], entry) if isinstance(entry, list) else []
        if len(numbers) != 2:
            section.fail(_KEY, expected)
        for number in reversed(numbers):
            if type(number) is not int or not 0 < number <= _MAX_SIDE or number % side:
                section.fail(_KEY, expected)
            flat.append(number)
    return flat
