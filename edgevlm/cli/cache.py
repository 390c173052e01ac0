"""`edgevlm cache`: what edgevlm keeps for the user, how large it is, and how to be rid of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgevlm.build.cache import CacheEntry

cache_app = typer.Typer(
    name="cache",
    help="List what edgevlm keeps on this machine, and remove it.",
    rich_markup_mode=None,
)


@cache_app.callback(invoke_without_command=True)
def cache(context: typer.Context, json: options.JsonOption = False) -> None:
    """List what edgevlm keeps on this machine, and remove it."""
    if context.invoked_subcommand is None:
        _list(json=json)


@cache_app.command("rm")
def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Entries to remove, as `edgevlm cache` lists them, or a model's name.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every entry.")] = False,
    keep_below: Annotated[
        str | None,
        typer.Option(
            "--keep-below",
            metavar="SIZE",
            help="Remove the models used longest ago until the cache is this small: 500MB, 2GB.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: options.JsonOption = False,
) -> None:
    """Remove entries of the cache. What is removed is built again when it is needed."""
    from edgevlm.build.cache import cache_entries, remove_entries
    from edgevlm.cli import console
    from edgevlm.files import human_bytes

    if (bool(names) + everything + (keep_below is not None)) != 1:
        raise typer.BadParameter("name what to remove: NAME..., --all or --keep-below SIZE")
    chosen = _chosen(cache_entries(), names or [], keep_below)
    n_bytes = sum(entry.n_bytes for entry in chosen)
    if chosen and not yes:
        _ask(f"remove {', '.join(entry.name for entry in chosen)} ({human_bytes(n_bytes)})?")
    removed, busy = remove_entries(chosen)
    freed = sum(entry.n_bytes for entry in removed)
    if json:
        console.print_json(
            {
                "removed": [entry.name for entry in removed],
                "busy": [entry.name for entry in busy],
                "freed_n_bytes": freed,
            }
        )
    for entry in busy:
        console.note(f"{entry.name} stays: another edgevlm is writing it")
    if not json:
        what = ", ".join(entry.name for entry in removed) or "nothing"
        console.note(f"removed {what} ({human_bytes(freed)})")
    if busy:
        raise typer.Exit(1)


def _list(*, json: bool) -> None:
    from edgevlm.build.cache import cache_entries, cache_folder
    from edgevlm.cli import console
    from edgevlm.files import human_bytes

    entries = cache_entries()
    n_bytes = sum(entry.n_bytes for entry in entries)
    if json:
        console.print_json(
            {
                "folder": str(cache_folder()),
                "n_bytes": n_bytes,
                "entries": [_document(entry) for entry in entries],
            }
        )
        return
    if entries:
        console.table(
            ("name", "what", "size", "last used"),
            [
                (entry.name, entry.kind, human_bytes(entry.n_bytes), _day(entry.last_used))
                for entry in entries
            ],
            right=(2,),
        )
    console.note(f"\n{human_bytes(n_bytes)} in {cache_folder()}")
    if entries:
        console.note("`edgevlm cache rm NAME` removes an entry")


def _document(entry: CacheEntry) -> dict[str, object]:
    from datetime import UTC, datetime

    return {
        "name": entry.name,
        "kind": entry.kind,
        "path": str(entry.path),
        "n_bytes": entry.n_bytes,
        "last_used": datetime.fromtimestamp(entry.last_used, UTC).isoformat(timespec="seconds"),
    }


def _day(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def _chosen(
    entries: Sequence[CacheEntry], names: Sequence[str], keep_below: str | None
) -> tuple[CacheEntry, ...]:
    from edgevlm.build.cache import beyond
    from edgevlm.errors import SourceNotFoundError

    if keep_below is not None:
        return beyond(entries, options.parse_size(keep_below))
    if not names:
        return tuple(entries)
    chosen: dict[str, CacheEntry] = {}
    for name in names:
        found = [entry for entry in entries if name in (entry.name, _model_name(entry))]
        if not found:
            known = ", ".join(entry.name for entry in entries) or "nothing"
            raise SourceNotFoundError(f"the cache has no entry `{name}`", hint=f"it has: {known}")
        chosen |= {entry.name: entry for entry in found}
    return tuple(chosen.values())


def _model_name(entry: CacheEntry) -> str:
    """`shapes-0.1.0-0123456789ab` was built from a model named `shapes`."""
    return entry.name.rsplit("-", 2)[0] if entry.kind == "model" else entry.name


def _ask(question: str) -> None:
    import sys

    from edgevlm.cli.console import printable
    from edgevlm.errors import OutputError

    if sys.stdin is None or not sys.stdin.isatty():
        raise OutputError("nothing was removed: there is no terminal to ask", hint="add `--yes`")
    if not typer.confirm(printable(question), err=True):
        raise typer.Exit(1)
