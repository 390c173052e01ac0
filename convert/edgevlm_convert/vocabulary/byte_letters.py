"""The letters that byte-level BPE writes for bytes: GPT-2's table."""

from __future__ import annotations

# These bytes are written as themselves, all others as the characters from 256 on.
_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))


def _letters() -> tuple[str, ...]:
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in _PLAIN else chr(next(others)) for byte in range(256))


BYTE_LETTERS = _letters()
