"""One file of the Hub -> one file on the disk: resumed, never longer than listed, hash compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgevlm.errors import EdgeVLMError, HubError
from edgevlm.files import human_bytes
from edgevlm.hub.access import Again, Hub, Patience
from edgevlm.hub.file import HubFile
from edgevlm.progress import Advance

if TYPE_CHECKING:
    from httpx2 import Response

_CHUNK_BYTES = 1 << 20
# What must have come for a broken connection to be forgiven: a server that sends a byte and hangs
# up would otherwise be asked for ever.
_ENOUGH_BYTES = 1 << 20


class _Damaged(Exception):
    """The bytes are not those that were listed."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Partial:
    """What has come of a file, and its hash so far."""

    def __init__(self, file: HubFile, n_bytes: int, out: BinaryIO, advance: Advance) -> None:
        self.n_bytes = n_bytes
        self.done = 0
        self._file = file
        self._out = out
        self._advance = advance
        self._digest = file.digest()

    def take_up(self) -> None:
        """Count and hash what an earlier run left."""
        while chunk := self._out.read(_CHUNK_BYTES):
            self._count(chunk)
        self._advance(self.done)

    def append(self, chunk: bytes) -> None:
        """Write what came."""
        if self.done + len(chunk) > self.n_bytes:
            raise _Damaged(f"more than {self.n_bytes} bytes come")
        self._out.write(chunk)
        self._count(chunk)
        self._advance(len(chunk))

    def restart(self) -> None:
        """Forget what has come."""
        self._advance(-self.done)
        self._out.seek(0)
        self._out.truncate()
        self.done = 0
        self._digest = self._file.digest()

    def check(self) -> None:
        """Compare the hash with the listed one."""
        value = self._digest.hexdigest() if self._digest else self._file.etag
        if value != self._file.etag:
            raise _Damaged(f"its hash is {value}, listed is {self._file.etag}")

    def _count(self, chunk: bytes) -> None:
        self.done += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)


def download(hub: Hub, file: HubFile, commit: str, path: Path, *, advance: Advance) -> None:
    """Let `file` gather at `path`, from where an earlier run stopped.

    Whatever ends it early, what has come stays, for the next run to go on with.

    Args:
        hub: where from.
        file: with its size and etag.
        commit: of the repository.
        path: of the bytes.
        advance: told the bytes, those of an earlier run at once.

    Raises:
        HubError: other bytes came than were listed, or a refusal.
        HubUnreachableError: no answer, tried often enough.
    """
    n_bytes = file.n_bytes or 0
    left = path.stat().st_size if path.exists() else 0
    if left:
        hub.note(f"going on with `{file.name}` at {human_bytes(left)} of {human_bytes(n_bytes)}")
    with path.open("ab+") as out:
        out.seek(0)
        partial = _Partial(file, n_bytes, out, advance)
        partial.take_up()
        try:
            _gather(hub, file, commit, partial)
        except _Damaged as damaged:
            if not left:
                partial.restart()
                raise _other_bytes(hub, file, damaged) from None
            # What the earlier run left may be what is wrong.
            hub.note(f"`{file.name}` is damaged ({damaged.why}); starting it again")
            partial.restart()
            try:
                _gather(hub, file, commit, partial)
            except _Damaged as again:
                partial.restart()
                raise _other_bytes(hub, file, again) from None


def _gather(hub: Hub, file: HubFile, commit: str, partial: _Partial) -> None:
    address = hub.file(file.name, commit)
    patience = Patience(hub, f"`{file.name}`")
    while partial.done < partial.n_bytes:
        before = partial.done
        try:
            with hub.answer(address, offset=partial.done) as response:
                _check_answer(hub, file, response, partial)
                for chunk in response.iter_bytes():
                    partial.append(chunk)
            if partial.done < partial.n_bytes:
                raise Again("the connection ended early")
        except Again as again:
            if partial.done - before >= _ENOUGH_BYTES:
                patience.renew()
            patience.wait(again)
    partial.check()


def _check_answer(hub: Hub, file: HubFile, response: Response, partial: _Partial) -> None:
    """See from the headers that it is the listed file, from the byte that was asked for."""
    for hop in (*response.history, response):
        linked = hop.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
        if linked and file.etag and linked != file.etag:
            raise _Damaged(f"its etag is {linked[:80]}, listed is {file.etag}")
    if "text/html" in response.headers.get("content-type", "") and not file.name.endswith(".html"):
        raise HubError(
            f"{hub.endpoint} answers with a web page where `{file.name}` was asked for",
            hint="check HF_ENDPOINT, and that no login page of the network stands before it",
        )
    whole = response.headers.get("content-length", "")
    if response.status_code == 206:
        start, whole = _range(response.headers.get("content-range", ""))
        if start != partial.done:
            raise _Damaged(
                f"bytes from {start} come where those from {partial.done} were asked for"
            )
    elif partial.done:
        partial.restart()
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    if is_plain and whole.isdecimal() and int(whole) != partial.n_bytes:
        raise _Damaged(f"it has {whole} bytes, listed are {partial.n_bytes}")


def _range(header: str) -> tuple[int, str]:
    """Return the first byte and the whole size of a Content-Range."""
    found = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", header.strip())
    return (int(found[1]), found[2]) if found else (-1, "")


def _other_bytes(hub: Hub, file: HubFile, damaged: _Damaged) -> EdgeVLMError:
    return HubError(
        f"`{file.name}` is not what {hub.endpoint} lists: {damaged.why}",
        hint="try again; where HF_ENDPOINT names a mirror, or a proxy is between, it changes files",
    )
