"""What a person sees: data on stdout, everything else on stderr; the one place that uses rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from edgevlm.progress import SILENT, Advance, Progress, Unit

if TYPE_CHECKING:
    from rich.console import Console

# Below this a table column is folded; a pipe gets lines as long as they are.
_PIPE_WIDTH = 200


@cache
def _console(stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, width=width, soft_wrap=False)


def out() -> Console:
    """Return the console for data (stdout)."""
    return _console(False)


def err() -> Console:
    """Return the console for everything else (stderr)."""
    return _console(True)


def note(text: str, *, quiet: bool = False) -> None:
    """Say something on stderr, unmarked and unwrapped, unless `quiet`."""
    if not quiet:
        err().print(printable(text), markup=False, style="dim", soft_wrap=True)


def print_json(document: object) -> None:
    """Print exactly one JSON document on stdout; in ASCII to a terminal, which obeys escapes."""
    text = json.dumps(document, indent=2, ensure_ascii=sys.stdout.isatty(), allow_nan=False)
    sys.stdout.write(text + "\n")


def show_error(message: str, hint: str) -> None:
    """Print `error: ...`, a blank line and `hint: ...` on stderr."""
    console = err()
    console.print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True)
    if hint:
        console.print(f"\n[bold cyan]hint:[/] {_escape(hint)}", soft_wrap=True)


def printable(text: str) -> str:
    """Replace control characters, which could move the cursor or recolour text, by escapes."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> None:
    """Print a table on stdout; the columns numbered in `right` are set right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, header in enumerate(headers):
        grid.add_column(header, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_escape(cell) for cell in row))
    out().print(grid)


class _RichProgress:
    """Bars on stderr, one a task."""

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        from rich import progress as bars
        from rich.table import Column

        def column() -> Column:
            return Column(no_wrap=True)

        columns = (
            (bars.DownloadColumn(table_column=column()), bars.TransferSpeedColumn())
            if unit == "bytes"
            else (bars.MofNCompleteColumn(table_column=column()),)
        )
        # A long name gives way to the numbers: a bar of two lines leaves one behind.
        name = Column(no_wrap=True, overflow="ellipsis", max_width=max(12, err().width - 50))
        with bars.Progress(
            bars.TextColumn("{task.description}", markup=False, table_column=name),
            bars.BarColumn(),
            *columns,
            bars.TimeRemainingColumn(table_column=column()),
            console=err(),
            transient=True,
        ) as display:
            handle = display.add_task(label, total=total)

            def advance(amount: int, /) -> None:
                display.update(handle, advance=amount)

            yield advance


def progress_for(*, json: bool = False, quiet: bool = False) -> Progress:
    """Return bars for a terminal, SILENT for a pipe, `--json` or `--quiet`."""
    return SILENT if json or quiet or not sys.stderr.isatty() else _RichProgress()
