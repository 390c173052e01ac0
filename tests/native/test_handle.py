"""Native memory: NULL is a typed error, and what is owned is freed once, last in first out."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.native.handle import owned


def refused() -> ModelLoadError:
    return ModelLoadError("refused", hint="do something else")


@pytest.mark.parametrize("null", [None, 0])
def test_null_is_a_typed_error_and_is_not_freed(null: int | None) -> None:
    freed: list[int] = []
    with pytest.raises(ModelLoadError, match="refused"), owned(null, freed.append, error=refused):
        pytest.fail("the block must not run")
    assert freed == []


def test_freed_once_and_last_in_first_out() -> None:
    freed: list[str] = []
    with ExitStack() as stack:
        for name in ("model", "context", "projector"):
            assert stack.enter_context(owned(name, freed.append, error=refused)) == name
        assert freed == []
    assert freed == ["projector", "context", "model"]


def test_freed_once_when_the_block_fails() -> None:
    freed: list[int] = []
    with pytest.raises(KeyError), owned(7, freed.append, error=refused):
        raise KeyError("inside")
    assert freed == [7]


def test_what_is_open_is_freed_when_the_next_one_is_null() -> None:
    freed: list[int] = []

    def open_both() -> None:
        with ExitStack() as stack:
            stack.enter_context(owned(1, freed.append, error=refused))
            stack.enter_context(owned(0, freed.append, error=refused))

    with pytest.raises(ModelLoadError):
        open_both()
    assert freed == [1]
