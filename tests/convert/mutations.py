"""Ways to leave a transform out of a planned conversion, for proofs that it would be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from edgevlm_convert.metadata import TypedValue
from edgevlm_convert.plan import ConversionPlan
from edgevlm_convert.writer import GGUFPlan, OutputTensor, plan_gguf
from numpy.typing import NDArray

Change = Callable[[dict[str, OutputTensor]], None]
Mutation = Callable[[ConversionPlan], ConversionPlan]
Values = Mapping[str, TypedValue | None]


def text(change: Change, metadata: Values | None = None) -> Mutation:
    """Return a mutation of the text model: its tensors by name, its keys (None: without)."""
    return lambda plan: replace(plan, text=_changed(plan.text, change, metadata))


def mmproj(change: Change, metadata: Values | None = None) -> Mutation:
    """Return a mutation of the projector."""
    return lambda plan: replace(plan, mmproj=_changed(plan.mmproj, change, metadata))


def _changed(plan: GGUFPlan, change: Change, metadata: Values | None) -> GGUFPlan:
    tensors = {tensor.info.name: tensor for tensor in plan.tensors}
    change(tensors)
    values = {**plan.metadata, **(metadata or {})}
    renamed = [
        replace(tensor, info=replace(tensor.info, name=name)) for name, tensor in tensors.items()
    ]
    return plan_gguf(
        metadata={key: value for key, value in values.items() if value is not None},
        tensors=renamed,
    )


def nothing(tensors: dict[str, OutputTensor]) -> None:
    """Leave all tensors as they are, for mutations of metadata."""
    del tensors


def swap(one: str, other: str) -> Change:
    """Exchange all tensors that differ only in `one` and `other`."""

    def change(tensors: dict[str, OutputTensor]) -> None:
        for name in [name for name in tensors if one in name]:
            twin = name.replace(one, other)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return change


def without(*names: str) -> Change:
    """Leave tensors out."""

    def change(tensors: dict[str, OutputTensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def both(*changes: Change) -> Change:
    """Make several changes."""

    def change(tensors: dict[str, OutputTensor]) -> None:
        for one in changes:
            one(tensors)

    return change


def instead(name: str, other: str) -> Change:
    """Write another tensor's values under a name."""

    def change(tensors: dict[str, OutputTensor]) -> None:
        tensors[name] = tensors[other]

    return change


def values(
    part: str,
    function: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    at_end: bool = False,
) -> Change:
    """Compute the values of every tensor anew whose name contains `part`, as a whole.

    `function` gets float32 in the tensor's shape and returns as many values. With `at_end` names
    must end with `part`.
    """

    def change(tensors: dict[str, OutputTensor]) -> None:
        found = [name for name in tensors if (name.endswith(part) if at_end else part in name)]
        assert found, f"no tensor of the file is called {part}"
        for name in found:
            tensors[name] = _computed(tensors[name], function)

    return change


def _computed(
    tensor: OutputTensor, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> OutputTensor:
    shape = tensor.info.shape
    n_rows = int(np.prod(shape[:-1]))
    whole = function(tensor.read(0, n_rows).reshape(shape)).reshape(n_rows, shape[-1])
    whole = np.ascontiguousarray(whole, dtype=np.float32)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return whole[start:stop]

    return replace(tensor, read=read, read_raw=None)


def unpaired(n_head: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the function that undoes the order of rotary rows of a `llama` query or key matrix."""

    def function(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        half = rows.shape[0] // n_head // 2
        return rows.reshape(n_head, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)

    return function
