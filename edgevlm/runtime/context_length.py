"""How many tokens a context holds when nobody says, and what may be asked."""

from __future__ import annotations

from edgevlm.errors import ModelLoadError
from edgevlm.runtime.footprint import DEFAULT_N_CTX


def context_length(asked: int | None, n_ctx_train: int) -> int:
    """Return the length of a context in tokens.

    Args:
        asked: by the user; None: 4096 or the model's own, whichever is smaller.
        n_ctx_train: that the model was trained for.

    Raises:
        ModelLoadError: more is asked than the model was trained for.
    """
    if asked is None:
        return min(DEFAULT_N_CTX, n_ctx_train)
    if not 0 < asked <= n_ctx_train:
        raise ModelLoadError(
            f"a context of {asked} tokens is asked, the model was trained for {n_ctx_train}",
            hint=f"use `--ctx` between 1 and {n_ctx_train}",
        )
    return asked
