"""Typed and bounded access to config.json and its sections."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import NoReturn, cast

from edgevlm.errors import CheckpointError

# Far above any model that exists, far below what would exhaust memory while rules are made.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 18
MAX_HEADS = 4096
MAX_VOCABULARY = 1 << 22
# Classes that are not transformers' own have other names for a section (OpenGVLab's InternVL,
# DeepSeek-OCR).
_OTHER_NAMES = {"text_config": ("llm_config", "language_config")}
_SHORT = reprlib.Repr()
_SHORT.maxother = 60
_SHORT.maxlong = 30


class Section:
    """One JSON object of a checkpoint's configuration, read key by key with type and bounds.

    A key that is null counts as missing. Every method raises CheckpointError with the full path of
    the key and its value.
    """

    def __init__(self, values: Mapping[str, object], *, file: str, path: str = "") -> None:
        self._values = values
        self._file = file
        self._path = path

    def has(self, key: str) -> bool:
        """Return whether the key is there and not null; a section may have another name."""
        return self._values.get(self._found(key)) is not None

    def _found(self, key: str) -> str:
        names = (key, *_OTHER_NAMES.get(key, ()))
        return next((name for name in names if self._values.get(name) is not None), key)

    def keys(self) -> list[str]:
        """Return the names of all keys."""
        return list(self._values)

    def raw(self, key: str) -> object:
        """Return the value as it stands, None when it is missing."""
        return self._values.get(key)

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raise the error for a key whose value is missing or not as expected."""
        where = f"{self._file}: `{self._path}{key}`"
        value = self._values.get(key)
        state = "is missing" if value is None else f"is {_SHORT.repr(value)}"
        raise CheckpointError(
            f"{where} {state}, expected {expected}",
            hint="the file is damaged or of another model; download the checkpoint again",
        )

    def section(self, key: str) -> Section:
        """Return a nested object."""
        key = self._found(key)
        value = self._values.get(key)
        if not isinstance(value, dict):
            self.fail(key, "an object")
        return Section(cast(dict[str, object], value), file=self._file, path=f"{self._path}{key}.")

    def empty(self, key: str) -> Section:
        """Return a nested object without keys, in place of one that is missing."""
        return Section({}, file=self._file, path=f"{self._path}{key}.")

    def over(self, base: Section) -> Section:
        """Return this section with the keys of `base` that it lacks."""
        return Section({**base._values, **self._values}, file=self._file, path=self._path)

    def with_defaults(self, defaults: Mapping[str, object]) -> Section:
        """Return this section with `defaults` for the keys that are missing or null."""
        given = {key: value for key, value in self._values.items() if value is not None}
        return Section({**defaults, **given}, file=self._file, path=self._path)

    def with_values(self, values: Mapping[str, object]) -> Section:
        """Return this section with `values` in place of its own."""
        return Section({**self._values, **values}, file=self._file, path=self._path)

    def integer(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        """Return an integer in [low, high]."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        # bool is an int in Python, not in JSON.
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, *, low: float, high: float, default: float | None = None) -> float:
        """Return a finite number in [low, high]."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            # Nothing that is not finite is within; isfinite() raises for an integer of 400 digits.
            or not low <= value <= high
        ):
            self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """Return a string."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.fail(key, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of strings; empty when it is missing."""
        items = self._list(key, "a list of strings") if self.has(key) else []
        if not all(isinstance(item, str) for item in items):
            self.fail(key, "a list of strings")
        return cast(list[str], items)

    def integers(self, key: str, *, low: int, high: int, max_length: int) -> list[int]:
        """Return a list of at most `max_length` integers in [low, high]."""
        expected = f"a list of at most {max_length} integers from {low} to {high}"
        items = self._list(key, expected)
        if len(items) > max_length:
            self.fail(key, expected)
        for item in items:
            if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= high:
                self.fail(key, expected)
        return cast(list[int], items)

    def numbers(self, key: str, *, length: int, low: float, high: float) -> list[float]:
        """Return a list of exactly `length` finite numbers in [low, high]."""
        expected = f"a list of {length} numbers from {low:g} to {high:g}"
        items = self._list(key, expected)
        if len(items) != length:
            self.fail(key, expected)
        for item in items:
            if not isinstance(item, int | float) or isinstance(item, bool):
                self.fail(key, expected)
            if not low <= item <= high:
                self.fail(key, expected)
        return [float(cast(float, item)) for item in items]

    def require(self, key: str, allowed: Sequence[object], *, default: object) -> None:
        """Check that a key whose other values the runtime cannot compute has an allowed one."""
        value = self._values.get(key)
        value = default if value is None else value
        if not any(value == item and type(value) is type(item) for item in allowed):
            shown = " or ".join(repr(item) for item in allowed)
            self.fail(key, f"{shown}: llama.cpp computes this architecture with no other value")

    def _list(self, key: str, expected: str) -> list[object]:
        value = self._values.get(key)
        if not isinstance(value, list):
            self.fail(key, expected)
        return cast(list[object], value)
