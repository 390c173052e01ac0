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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import DriftError

Logits = NDArray[np.float32]
# A logit of minus infinity is a probability of exp(-1e4): no divergence is infinite.
LOWEST = -1e4
# Probabilities are summed in float32, which holds nothing below; a tail's logarithm ends here.
_TINY = 1e-38
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
        return np.maximum(exact, LOWEST).astype(np.float32)

    def tail(self, ids: NDArray[np.integer[Any]]) -> float:
        """Return the probability of all tokens but these."""
        left = self.weights.copy()
        left[ids] = 0
        return float(left.sum(dtype=np.float64)) / self.total

    def lowest(self) -> float:
        """Return the log-probability of the least likely token."""
        return max(float(self._logits.min()) - self._log_total, LOWEST)

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


def _check_shape(kept: KeptRows, logits: Logits) -> None:
    if logits.shape != (len(kept), kept.n_vocab):
        raise ValueError(f"logits {logits.shape} beside {len(kept)} x {kept.n_vocab} kept")
