"""What is done with a file's bytes while it is written: they are hashed, and sent to the disk."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from edgevlm.files import flush

_BATCH_BYTES = 1 << 22
_MAX_BATCHES_WAITING = 4
# Left to itself the kernel begins to write when a tenth of the memory is dirty; then the disk
# stands still while tensors are made, and all of them wait for it at the end.
_FLUSH_BYTES = 1 << 28


class WrittenFile:
    """Follows one file that is being written from its first byte to its last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._batch: list[bytes] = []
        self._n_batch_bytes = 0
        self._n_unflushed = 0
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="edgevlm-hash")
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="edgevlm-flush")
        self._hashing: deque[Future[None]] = deque()
        self._flushing: Future[None] | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads; what they have not begun is dropped."""
        self._hasher.shutdown(cancel_futures=True)
        self._flusher.shutdown(cancel_futures=True)

    def follow(self, piece: bytes) -> None:
        """Take note of the next bytes of the file; waits when hashing falls behind."""
        self._batch.append(piece)
        self._n_batch_bytes += len(piece)
        self._n_unflushed += len(piece)
        if self._n_batch_bytes >= _BATCH_BYTES:
            self._hash_batch()
        if self._n_unflushed >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._check_flushed()
            self._flushing = self._flusher.submit(flush, self._path)
            self._n_unflushed = 0

    def complete(self) -> str:
        """Return the SHA-256 of all bytes as lower-case hex, once they are on the disk."""
        self._hash_batch()
        self._check_flushed()
        flush(self._path)
        while self._hashing:
            self._hashing.popleft().result()
        # A model of many files has many of these.
        self._hasher.shutdown()
        self._flusher.shutdown()
        return self._digest.hexdigest()

    def _check_flushed(self) -> None:
        # The kernel reports a failed write once: who asks again is told that all is well.
        if self._flushing is not None:
            self._flushing.result()

    def _hash_batch(self) -> None:
        if len(self._hashing) == _MAX_BATCHES_WAITING:
            self._hashing.popleft().result()
        self._hashing.append(self._hasher.submit(self._hash, self._batch))
        self._batch, self._n_batch_bytes = [], 0

    def _hash(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
