"""The third stage: the rows that the text model gets for an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.vectors import cosines, relative_error
from edgevlm.verify.bounds import Bounds, judge
from edgevlm.verify.pixels import Seen
from edgevlm.verify.report import Stage, because_of, worst

EMBEDDINGS = "vision embeddings"
# Above it, something is in another place; below, something is a little off everywhere.
_SMALL_ERROR = 0.25
_SAME_ROW = 0.99

Rows = NDArray[np.float32]


def check_embeddings(images: Sequence[Seen], bounds: Bounds, losses: Sequence[str]) -> Stage:
    """Hold the projector's rows against those that transformers' language model gets.

    Args:
        images: those whose pixels agree.
        bounds: of the projector's file.
        losses: what that file says that the runtime does otherwise.
    """
    known = [
        (one.image.name, np.concatenate(one.encoded.tiles), one.image.embeddings)
        for one in images
        if one.image.embeddings is not None
    ]
    if not known:
        why = "the reference keeps no embeddings of an image whose pixels agree"
        return Stage(name=EMBEDDINGS, status="not checked", summary=why)
    worst_pair, error, lowest, mean = known[0][1:], -1.0, 1.0, 0.0
    for name, ours, theirs in known:
        if ours.shape != theirs.shape:
            return _other_shape(name, ours, theirs)
        if not np.isfinite(ours).all():
            return _no_numbers(name)
        found = cosines(ours, theirs)
        lowest, mean = min(lowest, float(found.min())), mean + float(found.mean()) / len(known)
        if relative_error(ours, theirs) > error:
            error, worst_pair = relative_error(ours, theirs), (ours, theirs)
    status = worst(
        [
            judge(lowest, bounds.min_cosine, rising=True),
            judge(error, bounds.relative_error),
        ]
    )
    ours, theirs = worst_pair
    early = status != "pass" and is_early(ours, theirs, bounds)
    if early and losses:
        status = "warn"
    return Stage(
        name=EMBEDDINGS,
        status=status,
        summary=f"cosine per token: mean {mean:.6f}, min {lowest:.6f}; relative error {error:.3g}",
        cause=""
        if status == "pass"
        else because_of(likely_cause(ours, theirs, bounds), losses if early else ()),
        numbers={
            "mean_cosine": mean,
            "min_cosine": lowest,
            "relative_error": error,
            "rows_early": int(early),
        },
    )


def _other_shape(name: str, ours: Rows, theirs: Rows) -> Stage:
    return Stage(
        name=EMBEDDINGS,
        status="fail",
        summary=f"{name}: {list(ours.shape)} values here, {list(theirs.shape)} in transformers",
        cause="the image becomes another number of visual tokens, or the projector's output has"
        " another width",
    )


def _no_numbers(name: str) -> Stage:
    return Stage(
        name=EMBEDDINGS,
        status="fail",
        summary=f"{name}: the embeddings are no numbers",
        cause="a value of the tower overflows in 16 bits: convert with `--outtype bf16`",
    )


def is_early(ours: Rows, theirs: Rows, bounds: Bounds) -> bool:
    """Return whether all rows but the last are the reference's, one place early."""
    return len(ours) > 2 and bool(cosines(ours[:-1], theirs[1:]).min() >= bounds.min_cosine[0])


def likely_cause(ours: Rows, theirs: Rows, bounds: Bounds) -> str:
    """Return what two sides that differ differ in, as far as their rows show it."""
    if is_early(ours, theirs, bounds):
        return (
            "every row stands one place early, the first patch is left out: the class token is"
            " taken for a patch"
        )
    error, cosine = relative_error(ours, theirs), cosines(ours, theirs)
    if cosine.min() >= bounds.min_cosine[0]:
        scale = float((ours * theirs).sum() / max(float((theirs * theirs).sum()), 1e-30))
        return (
            f"every row points the same way and is {scale:.4g} times as long: a scale, or the norm"
            " or weights behind which the rows are handed over"
        )
    if is_permuted(ours, theirs):
        return (
            "the same rows stand in another order: patches are merged or counted in another order"
            " (pixel shuffle, rows and columns)"
        )
    if error < _SMALL_ERROR:
        return (
            "every row is a little off: the epsilon of the tower's norms, the form of its"
            " activation (GELU by erf, tanh or quick), or weights that were rounded"
        )
    return (
        "rows differ altogether: order or rotation of the position table, the patch kernel, query"
        " and key, norms exchanged, the layer that is read, or a tensor in the wrong place"
    )


def is_permuted(ours: Rows, theirs: Rows) -> bool:
    """Return whether most rows have their equal in another place."""
    one, other = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        for rows in (ours[:4096], theirs[:4096])
    )
    found = one @ other.T
    best = found.argmax(axis=1)
    places = np.arange(len(found))
    elsewhere = (found[places, best] >= _SAME_ROW) & (best != places)
    return bool(elsewhere.mean() > 0.5 and len(set(best.tolist())) > 0.9 * len(found))
