"""`edgevlm doctor`: is this machine, and what is installed on it, fit to run models?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from edgevlm.runtime.checkup import Finding

_INDENT = 18
_NARROW = 48
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(json: options.JsonOption = False) -> None:
    """Check the installation and the machine, and say what to do."""
    from dataclasses import asdict

    from edgevlm.build.cache import cache_entries, cache_folder
    from edgevlm.cli import console
    from edgevlm.runtime.checkup import examine

    kept = sum(entry.n_bytes for entry in cache_entries())
    findings = examine(cache_folder(), cache_n_bytes=kept)
    worst = [state for state in ("fail", "warn") if any(one.state == state for one in findings)]
    if json:
        console.print_json(
            {
                "state": worst[0] if worst else "ok",
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        for finding in findings:
            _show(finding)
        n_warnings = sum(one.state == "warn" for one in findings)
        n_failures = sum(one.state == "fail" for one in findings)
        console.note(f"\n{_count(n_failures, 'failure')}, {_count(n_warnings, 'warning')}")
    if "fail" in worst:
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    """One line, folded under itself on a terminal, and below it what to do."""
    import sys
    from textwrap import wrap

    from edgevlm.cli.console import out, printable

    console = out()
    indent = _INDENT if console.width >= _NARROW else 2
    console.print(f"{finding.state:<4}", style=_STYLES[finding.state], end="  ")
    if indent == 2:
        console.print(finding.name, markup=False)
    value = printable(finding.value)
    lines = wrap(value, console.width - indent) if sys.stdout.isatty() else [value]
    for number, line in enumerate(lines or [""]):
        first = f"{finding.name:<{_INDENT - 6}}" if indent == _INDENT else " " * indent
        start = first if number == 0 else " " * indent
        console.print(f"{start}{line}", markup=False, soft_wrap=True)
    if finding.advice:
        # A command is copied whole: no line breaks of ours in it.
        advice = f"{' ' * min(indent, 6)}-> {printable(finding.advice)}"
        console.print(advice, markup=False, style="cyan", soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
