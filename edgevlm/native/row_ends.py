"""Ends of an image's rows that llama.cpp loses: Pixtral's `[IMG_BREAK]`, put back.

tools/mtmd/models/pixtral.cpp clears a tensor that was never written by multiplying it by zero, then
adds the embedding from the file. Where memory held NaN or Inf it stays NaN: now and then, and only
in these rows. What belongs there is known exactly, so it needs no new encode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def with_row_ends(rows: NDArray[np.float32], end: bytes) -> NDArray[np.float32]:
    """Return the embeddings of an image with the ends of its rows whole.

    Nothing is changed unless all that is no number stands where rows can end, and all that stands
    there is the end of a row as far as it is a number: other NaNs are another fault, and stay to be
    seen. How wide the image is, is told from that alone. So one embedding that is no number from
    first to last, and stands where a row could end, is taken for an end: a fault of the tower would
    not stop at one, attention spreads it.

    Args:
        rows: [n_tokens, n_embd], rows of the image one after the other, an end between them.
        end: float32 values of an end.
    """
    known = np.isfinite(rows)
    broken = ~known.all(axis=1)
    if not end or not broken.any():
        return rows
    wanted = np.frombuffer(end, dtype="<f4")
    agrees = ((rows == wanted) | ~known).all(axis=1)
    # Ends that came out whole: each of them must be explained too.
    whole = agrees & ~broken
    n_tokens = len(rows)
    for width in range(2, n_tokens + 1):
        if (n_tokens + 1) % width:
            continue
        is_end = np.zeros(n_tokens, dtype=bool)
        is_end[width - 1 :: width] = True
        if agrees[is_end].all() and not ((broken | whole) & ~is_end).any():
            mended = rows.copy()
            mended[is_end] = wanted
            return mended
    return rows
