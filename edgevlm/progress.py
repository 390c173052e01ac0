"""How long work reports that it goes on, without knowing who looks.

Domain code takes `progress: Progress = SILENT` and reports bytes or items;
`edgevlm.cli.console` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

Unit = Literal["bytes", "items"]
# Told what happens meanwhile, a sentence each.
Note = Callable[[str], None]


class Advance(Protocol):
    """Say that `amount` more units are done."""

    def __call__(self, amount: int, /) -> None:
        """Add `amount` to what is done."""
        ...


class Progress(Protocol):
    """Where a piece of long work reports to."""

    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> AbstractContextManager[Advance]:
        """Open a task of `total` units (None: unknown); the value is called as units are done."""
        ...


class _Silent:
    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        yield lambda amount, /: None


SILENT: Progress = _Silent()


def unheard(text: str, /) -> None:
    """Be a Note that nobody hears."""
