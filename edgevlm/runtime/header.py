"""Numbers and texts of a GGUF header, where any key may be missing or of another type."""

from __future__ import annotations

from edgevlm.gguf_file import GGUFFile


def numbers(file: GGUFFile, key: str) -> list[int]:
    """Return the whole numbers at `key`, one or an array; [] when absent."""
    value = file.metadata.get(key)
    items = value.head(value.n_items) if value is not None else []
    return [item for item in items if isinstance(item, int)]


def number(file: GGUFFile, key: str) -> int:
    """Return the whole number at `key`, 0 when there is none, or an array."""
    value = file.metadata.get(key)
    return 0 if value is None or value.is_array else next(iter(numbers(file, key)), 0)


def text(file: GGUFFile, key: str) -> str:
    """Return the text at `key`, "" when absent."""
    value = file.metadata.get(key)
    return value.value if value is not None and isinstance(value.value, str) else ""


def n_items(file: GGUFFile, key: str) -> int:
    """Return the length of the array at `key`, 0 when absent."""
    value = file.metadata.get(key)
    return value.n_items if value is not None and value.is_array else 0
