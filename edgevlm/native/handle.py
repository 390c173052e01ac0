"""One rule for native memory: NULL is a typed error, and what is owned is freed exactly once."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from edgevlm.errors import EdgeVLMError

T = TypeVar("T")


@contextmanager
def owned(
    handle: T | None, free: Callable[[T], object], *, error: Callable[[], EdgeVLMError]
) -> Generator[T]:
    """Yield a native handle and free it when the block ends, on success and on error.

    Nest several with `ExitStack`: they are freed last in, first out, so that a context never
    outlives its model.

    Args:
        handle: what the C function returned; None or 0 is NULL.
        free: the C function that frees it.
        error: makes the error to raise when `handle` is NULL; called only then, so that it can
            quote what the library logged.
    """
    if not handle:
        raise error()
    try:
        yield handle
    finally:
        free(handle)
