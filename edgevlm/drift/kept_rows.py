"""The baseline's distributions kept in little space, and other logits held against them.

Of each position the most likely tokens are kept, until what is left over has at most a probability
of 1e-7; a flat position that needs too many of them keeps its whole row. The KLD of a kept row then
is a lower bound, and comes with the width to an upper bound:

- All tokens left over count as one. With p and q the baseline's and the level's distribution, eps
  and delta the probabilities left over, sum p log(p/q) over them is at least eps log(eps/delta):
  the log sum inequality.
- It is at most eps (log m - min log q), with m the least of eps and the smallest kept probability.

Both sides' log-probabilities are rounded to float32 in the same way, and eps and delta computed by
one function, so that the KLD of a row with itself is exactly 0. The roundings are in the width.
Logits are worked through row by row: [n, n_vocab] is never there a second time.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import DriftError, OutputError
from edgevlm.files import TEMPORARY_PREFIX, check_free_space

Logits = NDArray[np.float32]
# A logit of minus infinity is a probability of exp(-1e4): no divergence is infinite.
_LOWEST = -1e4
# Probabilities are summed in float32, which holds nothing below; a tail's logarithm ends here.
_TINY = 1e-38
_FORMAT_VERSION = 1
_ARRAYS = {
    "version": np.dtype("<i8"),
    "ids": np.dtype("<i4"),
    "logprobs": np.dtype("<f4"),
    "offsets": np.dtype("<i8"),
    "tail": np.dtype("<f8"),
    "n_vocab": np.dtype("<i8"),
}
# What zipfile and numpy raise on damaged files.
_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# Rounding of a log-probability and of the exponentials that it is normalised with.
_ROUNDING = 2.0**-23


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptRows:
    """Distributions over a vocabulary at n positions, in part.

    Attributes:
        ids: int32 [n_kept] tokens, position after position; the most likely first, the others in
            no order that counts.
        logprobs: float32 [n_kept] their natural log-probabilities.
        offsets: int64 [n + 1] where each position begins in both.
        tail: float64 [n] probability of all tokens that are not kept; 0 where the row is whole.
        n_vocab: tokens of the vocabulary.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    offsets: NDArray[np.int64]
    tail: NDArray[np.float64]
    n_vocab: int

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.tail)

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.ids, self.logprobs, self.offsets, self.tail)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, kw_only=True, eq=False)
class Divergence:
    """Logits beside kept rows, position by position.

    Attributes:
        kld: float64 [n] KL(kept || logits) in nats, a lower bound up to rounding.
        kld_error: float64 [n] the true one is at most `kld + kld_error`, and at least `kld` less
            the roundings that are in it (1e-6 for usual rows).
        same_top: bool [n] whether the same token is the most likely one.
    """

    kld: NDArray[np.float64]
    kld_error: NDArray[np.float64]
    same_top: NDArray[np.bool_]


class _Row:
    """One row of logits as a distribution."""

    def __init__(self, logits: Logits) -> None:
        top = logits.max()
        if not np.isfinite(top):
            raise DriftError(
                "the model's logits are no numbers",
                hint="a tensor of this file overflows: `edgevlm verify` finds it",
            )
        self._logits = logits
        self.weights = np.exp(logits - top)
        self.total = float(self.weights.sum(dtype=np.float64))
        self._log_total = float(top) + float(np.log(self.total))

    def logprobs(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return natural log-probabilities, as they are kept."""
        exact = self._logits[ids].astype(np.float64) - self._log_total
        return np.maximum(exact, _LOWEST).astype(np.float32)

    def tail(self, ids: NDArray[np.integer[Any]]) -> float:
        """Return the probability of all tokens but these."""
        left = self.weights.copy()
        left[ids] = 0
        return float(left.sum(dtype=np.float64)) / self.total

    def lowest(self) -> float:
        """Return the log-probability of the least likely token."""
        return max(float(self._logits.min()) - self._log_total, _LOWEST)

    def most_likely(self, max_tail: float, most: int) -> NDArray[np.int64] | None:
        """Return the fewest tokens that leave at most `max_tail`; None: more than `most`."""
        # Tokens below the cut have `max_tail` at most, however many there are.
        cut = self.total * max_tail / len(self.weights)
        found = np.flatnonzero(self.weights > cut)
        if len(found) > most:
            order = np.argpartition(self._logits[found], len(found) - most)
            found = np.sort(found[order[len(found) - most :]])
        # Stable: of two tokens that are equally likely, argmax too takes the first.
        found = found[np.argsort(-self._logits[found], kind="stable")]
        left = self.tail(found)
        if left > max_tail:
            return None
        smallest_first = self.weights[found][::-1].astype(np.float64) / self.total
        n_spare = int(np.searchsorted(left + np.cumsum(smallest_first), max_tail, side="right"))
        return found[: max(len(found) - n_spare, 1)]


def keep_rows(logits: Logits, *, max_tail: float = 1e-7, most: int = 4096) -> KeptRows:
    """Keep the most likely tokens of each row.

    Args:
        logits: [n, n_vocab] float32.
        max_tail: probability that may be left over.
        most: tokens of a position that are kept; one that needs more keeps its whole row.

    Raises:
        DriftError: logits that are not a number, or infinite.
    """
    n, n_vocab = logits.shape
    ids: list[NDArray[np.int32]] = []
    logprobs: list[NDArray[np.float32]] = []
    tail = np.zeros(n)
    for place, values in enumerate(logits):
        row = _Row(values)
        kept = row.most_likely(max_tail, most)
        if kept is None:
            kept = np.arange(n_vocab, dtype=np.int64)
            top = int(values.argmax())
            kept[0], kept[top] = top, 0
        ids.append(kept.astype(np.int32))
        logprobs.append(row.logprobs(kept))
        tail[place] = row.tail(kept)
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=n)
    return KeptRows(
        ids=np.concatenate([np.zeros(0, dtype=np.int32), *ids]),
        logprobs=np.concatenate([np.zeros(0, dtype=np.float32), *logprobs]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tail=tail,
        n_vocab=n_vocab,
    )


def concatenate(parts: Sequence[KeptRows]) -> KeptRows:
    """Return all positions of some parts, at least one, of one vocabulary, in order."""
    vocabularies = {part.n_vocab for part in parts}
    if len(vocabularies) != 1:
        raise ValueError(f"rows of {len(vocabularies)} vocabularies: {sorted(vocabularies)}")
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return KeptRows(
        ids=np.concatenate([part.ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), *offsets]),
        tail=np.concatenate([part.tail for part in parts]),
        n_vocab=vocabularies.pop(),
    )


def diverge(kept: KeptRows, logits: Logits) -> Divergence:
    """Hold logits against kept rows.

    Args:
        kept: n positions.
        logits: [n, n_vocab] float32 at the same positions.

    Raises:
        DriftError: logits that are not a number, or infinite.
    """
    _check_shape(kept, logits)
    kld, error = np.zeros(len(kept)), np.zeros(len(kept))
    for place, values in enumerate(logits):
        row, one = _Row(values), slice(kept.offsets[place], kept.offsets[place + 1])
        kld[place], error[place] = _row_divergence(
            kept.ids[one], kept.logprobs[one], float(kept.tail[place]), row
        )
    same = logits.argmax(axis=1) == top_tokens(kept)
    return Divergence(kld=kld, kld_error=error, same_top=same)


def _row_divergence(
    ids: NDArray[np.int32], logprobs: NDArray[np.float32], tail: float, row: _Row
) -> tuple[float, float]:
    """Return the KLD of one position, and the width to its upper bound."""
    base = logprobs.astype(np.float64)
    level = row.logprobs(ids).astype(np.float64)
    probabilities = np.exp(base)
    kld = float((probabilities * (base - level)).sum())
    rounding = _ROUNDING * (4 - float((probabilities * (base + level)).sum()))
    if tail <= 0:
        return max(kld, 0.0), rounding
    log_tail = float(np.log(max(tail, _TINY)))
    rest = log_tail - float(np.log(max(row.tail(ids), _TINY)))
    most = min(log_tail, float(base.min())) - row.lowest()
    # Sums of rounded numbers may end a little below zero.
    return max(kld + tail * rest, 0.0), tail * max(most - rest, 0.0) + rounding


def top_tokens(kept: KeptRows) -> NDArray[np.int32]:
    """Return int32 [n], the most likely token at each position."""
    return kept.ids[kept.offsets[:-1]]


def logprob_of(kept: KeptRows, tokens: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the natural log-probability of one token at each position, float64 [n].

    A token that was not kept gets an upper bound: it is no likelier than all that were not kept
    together, nor than the least likely one kept. `token_logprobs` of the logits has no such gap.
    """
    found = np.zeros(len(kept))
    for place, token in enumerate(tokens):
        one = slice(kept.offsets[place], kept.offsets[place + 1])
        there = np.flatnonzero(kept.ids[one] == token)
        if len(there):
            found[place] = kept.logprobs[one][there[0]]
        else:
            log_tail = float(np.log(max(float(kept.tail[place]), _TINY)))
            found[place] = min(log_tail, float(kept.logprobs[one].min()))
    return found


def token_logprobs(logits: Logits, tokens: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return the natural log-probability of one token at each position, float64 [n].

    Rounded as kept ones are, so that a baseline beside itself has no difference.

    Args:
        logits: [n, n_vocab] float32.
        tokens: [n].

    Raises:
        DriftError: logits that are not a number, or infinite.
    """
    found = [_Row(row).logprobs(tokens[place : place + 1]) for place, row in enumerate(logits)]
    return np.concatenate([np.zeros(0, dtype=np.float32), *found]).astype(np.float64)


def save_rows(path: Path, kept: KeptRows) -> None:
    """Write kept rows as an npz, not packed, without pickles; it is there whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or its disk is too small.
    """
    check_free_space(path.parent, kept.n_bytes)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    values = {
        "version": _FORMAT_VERSION,
        "ids": kept.ids,
        "logprobs": kept.logprobs,
        "offsets": kept.offsets,
        "tail": kept.tail,
        "n_vocab": kept.n_vocab,
    }
    arrays = {key: np.asarray(values[key], dtype=dtype) for key, dtype in _ARRAYS.items()}
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}",
            hint="check the folder's permissions and its disk",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_rows(path: Path) -> KeptRows | None:
    """Read kept rows; None where the file is missing, torn, hostile or of another version.

    Kept rows are a cache: whoever reads None computes them again. Nothing is read that is larger
    than the file itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {key: _stored(archive, key, dtype) for key, dtype in _ARRAYS.items()}
        if arrays["version"].tolist() != _FORMAT_VERSION:
            return None
        kept = KeptRows(
            ids=arrays["ids"],
            logprobs=arrays["logprobs"],
            offsets=arrays["offsets"],
            tail=arrays["tail"],
            n_vocab=int(arrays["n_vocab"]),
        )
        return kept if _holds_together(kept) else None
    except _BROKEN:
        return None


def _stored(archive: zipfile.ZipFile, key: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return one array; its bytes must stand in the file as they are, and be of this type."""
    entry = archive.getinfo(f"{key}.npy")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"`{key}` is packed")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"`{key}` is of another version")
        shape, _, found = np.lib.format.read_array_header_1_0(file)
        if found != dtype or len(shape) > 1:
            raise ValueError(f"`{key}` is {found} {shape}")
        # The checksum is compared at the end of the bytes.
        return np.frombuffer(file.read(), dtype=dtype).reshape(shape)


def _holds_together(kept: KeptRows) -> bool:
    n, lengths = len(kept.tail), np.diff(kept.offsets)
    return bool(
        kept.ids.ndim == kept.logprobs.ndim == kept.offsets.ndim == kept.tail.ndim == 1
        and len(kept.offsets) == n + 1
        and kept.offsets[0] == 0
        and kept.offsets[-1] == len(kept.ids) == len(kept.logprobs)
        and (lengths > 0).all()
        and (lengths <= kept.n_vocab).all()
        and ((kept.ids >= 0) & (kept.ids < kept.n_vocab)).all()
        and ((kept.logprobs >= _LOWEST) & (kept.logprobs <= 1e-3)).all()
        and ((kept.tail >= 0) & (kept.tail <= 1)).all()
    )


def _check_shape(kept: KeptRows, logits: Logits) -> None:
    if logits.shape != (len(kept), kept.n_vocab):
        raise ValueError(f"logits {logits.shape} beside {len(kept)} x {kept.n_vocab} kept")
