"""One metadata value of a GGUF file, kept as it stands in the file until somebody asks for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

# Metadata value types by id: name and struct code; strings (8) and arrays (9) have no fixed size.
SCALARS = {
    0: ("UINT8", "B"),
    1: ("INT8", "b"),
    2: ("UINT16", "H"),
    3: ("INT16", "h"),
    4: ("UINT32", "I"),
    5: ("INT32", "i"),
    6: ("FLOAT32", "f"),
    7: ("BOOL", "?"),
    10: ("UINT64", "Q"),
    11: ("INT64", "q"),
    12: ("FLOAT64", "d"),
}
_CODES = dict(SCALARS.values())
STRING, ARRAY = 8, 9
_ARRAY_HEADER_BYTES = 12
_U64 = struct.Struct("<Q")

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class GGUFValue:
    """One metadata value, decoded when asked for.

    Attributes:
        type: "UINT32", "STRING", "ARRAY:STRING" ...
        encoded: the value as it stands in the file, an array with its element type and count; a
            copy of it needs no decoding.
        n_items: length of an array; 1 for anything else.
    """

    type: str
    encoded: bytes
    n_items: int

    @property
    def is_array(self) -> bool:
        """Whether the value is a list."""
        return self.type.startswith("ARRAY:")

    @cached_property
    def value(self) -> Scalar | list[Scalar]:
        """The value; bytes that are not UTF-8 become lone surrogates (`surrogateescape`)."""
        items = self.head(self.n_items)
        return items if self.is_array else items[0]

    def head(self, n_items: int) -> list[Scalar]:
        """Return the first `n_items` of an array (or the one value), without decoding the rest."""
        n_items = min(n_items, self.n_items)
        start = _ARRAY_HEADER_BYTES if self.is_array else 0
        item_type = self.type.removeprefix("ARRAY:")
        if item_type != "STRING":
            return list(struct.unpack_from(f"<{n_items}{_CODES[item_type]}", self.encoded, start))
        items: list[Scalar] = []
        for _ in range(n_items):
            (length,) = _U64.unpack_from(self.encoded, start)
            start += 8 + length
            raw = self.encoded[start - length : start]
            items.append(raw.decode("utf-8", errors="surrogateescape"))
        return items
