"""Read JSON that a stranger wrote: bounded in size and depth, no duplicate keys, no NaN."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, cast

from edgevlm.errors import CheckpointError
from edgevlm.files import human_bytes

DAMAGED_HINT = "the file is damaged or was altered; download the checkpoint again"
_MAX_SHOWN = 120
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def quoted(text: str) -> str:
    """Return untrusted text between backticks, on one line, without control characters."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return f"`{shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '...'}`"


def check_regular_file(path: Path) -> int:
    """Return the size of a regular file (symbolic links are followed, as in the Hub's cache).

    Raises:
        CheckpointError: it is missing, unreadable, or a pipe, device or folder.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise CheckpointError(
            f"`{path}` cannot be read: {error.strerror}", hint="download the checkpoint again"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"`{path}` is not a regular file", hint=DAMAGED_HINT)
    return status.st_size


def read_json(path: Path, *, max_bytes: int) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: missing, larger than `max_bytes`, not UTF-8, not JSON, nested too deeply, a
            key given twice, or not an object.
    """
    size = check_regular_file(path)
    if size > max_bytes:
        raise CheckpointError(
            f"`{path}` has {human_bytes(size)}, more than the {human_bytes(max_bytes)} allowed",
            hint=DAMAGED_HINT,
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    return parse_json_object(raw, where=f"`{path}`")


def parse_json_object(raw: bytes, *, where: str) -> dict[str, object]:
    """Return the JSON object in `raw`; `where` names its place in errors.

    Raises:
        CheckpointError: as for `read_json`.
    """
    try:
        text = raw.decode("utf-8")
        parsed = cast(
            object,
            json.loads(
                text,
                object_pairs_hook=_unique(where),
                parse_constant=_no_constant(where),
            ),
        )
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8 text", hint=DAMAGED_HINT) from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested too deeply", hint=DAMAGED_HINT) from error
    except ValueError as error:
        # JSONDecodeError, or an integer of thousands of digits.
        raise CheckpointError(f"{where} is not valid JSON: {error}", hint=DAMAGED_HINT) from error
    if _has_lone_surrogate(text):
        raise CheckpointError(f"{where} holds half a character", hint=DAMAGED_HINT)
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} holds no JSON object", hint=DAMAGED_HINT)
    return cast(dict[str, object], parsed)


def _has_lone_surrogate(text: str) -> bool:
    """Return whether an escaped surrogate stands alone: Python keeps it, UTF-8 cannot."""
    if not _SURROGATE.search(text):
        return False
    high_ends = -1
    for match in _ESCAPE.finditer(text):
        unit = int(match[1] or "0", 16)
        if high_ends not in (-1, match.start()):
            return True
        is_low = 0xDC00 <= unit < 0xE000
        if is_low != (high_ends == match.start()):
            return True
        high_ends = match.end() if 0xD800 <= unit < 0xDC00 else -1
    return high_ends != -1


def _unique(where: str) -> Callable[[Sequence[tuple[str, object]]], dict[str, object]]:
    def build(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        built = dict(pairs)
        if len(built) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CheckpointError(f"{where} gives {quoted(twice)} twice", hint=DAMAGED_HINT)
        return built

    return build


def _no_constant(where: str) -> Callable[[str], NoReturn]:
    def refuse(constant: str) -> NoReturn:
        raise CheckpointError(f"{where} holds {constant}, which is not JSON", hint=DAMAGED_HINT)

    return refuse
