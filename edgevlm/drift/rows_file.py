"""Kept rows in a file of the cache, or of a saved baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.drift.kept_rows import LOWEST, KeptRows
from edgevlm.drift.stored_arrays import BROKEN, read_arrays, write_arrays

_FORMAT_VERSION = 1
_ARRAYS = {
    "version": np.dtype("<i8"),
    "ids": np.dtype("<i4"),
    "logprobs": np.dtype("<f4"),
    "offsets": np.dtype("<i8"),
    "tail": np.dtype("<f8"),
    "n_vocab": np.dtype("<i8"),
}


def save_rows(path: Path, kept: KeptRows) -> None:
    """Write kept rows as an npz, not packed, without pickles; it is there whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or its disk is too small.
    """
    values = {
        "version": _FORMAT_VERSION,
        "ids": kept.ids,
        "logprobs": kept.logprobs,
        "offsets": kept.offsets,
        "tail": kept.tail,
        "n_vocab": kept.n_vocab,
    }
    write_arrays(path, {key: np.asarray(values[key], dtype) for key, dtype in _ARRAYS.items()})


def load_rows(path: Path) -> KeptRows | None:
    """Read kept rows; None where the file is missing, torn, hostile or of another version.

    Kept rows are a cache: whoever reads None computes them again. Nothing is read that is larger
    than the file itself.
    """
    arrays = read_arrays(path)
    try:
        if arrays is None or any(arrays[key].dtype != dtype for key, dtype in _ARRAYS.items()):
            return None
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
    except BROKEN:
        return None


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
        and ((kept.logprobs >= LOWEST) & (kept.logprobs <= 1e-3)).all()
        and ((kept.tail >= 0) & (kept.tail <= 1)).all()
    )
