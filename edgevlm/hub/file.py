"""A file of a repository, before any of its bytes are here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol


class Digest(Protocol):
    """A hash that is fed."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the value so far."""
        ...


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository.
        n_bytes: None: not listed.
        etag: under which the cache keeps it; None: not listed.
    """

    name: str
    n_bytes: int | None
    etag: str | None

    def digest(self) -> Digest | None:
        """Return the hash whose value is `etag`, nothing read yet; None where it is no hash.

        Large files are kept under their SHA-256, others under git's name for them (git-hash-object:
        SHA-1 over `blob SIZE NUL` and the bytes).
        """
        if self.etag is None or self.n_bytes is None:
            return None
        if len(self.etag) == 64:
            return hashlib.sha256()
        if len(self.etag) == 40:
            return hashlib.sha1(b"blob %d\0" % self.n_bytes, usedforsecurity=False)
        return None
