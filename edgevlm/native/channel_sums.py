"""How much goes through each input channel of each matrix: sums of squares, while graphs run.

An importance matrix is made of them (llama.cpp tools/imatrix: for a matrix product of weights with
float32 rows, sum over rows of x^2, channel by channel; for experts, over the rows that each was
given). The matrices of one block read the same rows: query, key and value, or gate and up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.ggml_tensor import (
    layout_fault,
    operation,
    read_rows,
    tensor_name,
    tensor_source,
    weight_shape,
)

_PRODUCT, _PRODUCT_BY_ID = "MUL_MAT", "MUL_MAT_ID"


@dataclass(frozen=True, kw_only=True)
class MatrixSums:
    """What went through one matrix, or through each expert's.

    Attributes:
        sum2: [n_matrices, n_channels] float64, sums of squares.
        counts: [n_matrices] int64, rows that were summed.
    """

    sum2: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass
class ChannelSums:
    """Collects sums of the graphs of a text model and its projector; a watcher of results.

    Attributes:
        kind: what the rows of the running graph are, such as "text"; sums are kept apart by it.
        leaves_out_steps: leave out graphs of a single token, which cost a third more with sums; who
            asks for that has them read again in one batch.
        sums: by kind, then by the matrix's name.
    """

    kind: str = ""
    leaves_out_steps: bool = False
    sums: dict[str, dict[str, MatrixSums]] = field(default_factory=dict[str, dict[str, MatrixSums]])
    _shared: dict[int, tuple[NDArray[np.float64], int]] = field(
        default_factory=dict[int, tuple[NDArray[np.float64], int]]
    )
    _wanted: dict[int, bool] = field(default_factory=dict[int, bool])

    @property
    def fault(self) -> str:
        """Why tensors cannot be read; "" when they can."""
        return layout_fault()

    def begin(self) -> None:
        """Forget what the matrices of the graph before shared."""
        self._shared.clear()
        self._wanted.clear()

    def wants(self, node: int) -> bool:
        """Whether a node multiplies rows with weights."""
        known = self._wanted.get(node)
        if known is None:
            known = self._wanted[node] = _is_product(node)
        return known

    def computed(self, node: int) -> None:
        """Add the rows that a product read."""
        weights, rows = tensor_source(node, 0), tensor_source(node, 1)
        if weights is None or rows is None:
            return
        if operation(node) == _PRODUCT:
            shared = self._shared.get(rows)
            if shared is None:
                shared = self._shared[rows] = _sum_of_rows(rows)
            sum2, n_rows = shared
            self._add(tensor_name(weights), sum2[None], np.array([n_rows]))
        else:
            chosen = tensor_source(node, 2)
            if chosen is not None:
                self._add(tensor_name(weights), *_sums_of_experts(weights, rows, chosen))

    def merged(self, kinds: Mapping[str, Mapping[str, MatrixSums]]) -> None:
        """Add sums that were collected before."""
        for kind, matrices in kinds.items():
            self.kind = kind
            for name, one in matrices.items():
                self._add(name, one.sum2, one.counts)

    def _add(self, name: str, sum2: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        of_kind = self.sums.setdefault(self.kind, {})
        before = of_kind.get(name)
        if before is not None:
            sum2, counts = before.sum2 + sum2, before.counts + counts
        of_kind[name] = MatrixSums(sum2=sum2, counts=counts)


def _is_product(node: int) -> bool:
    if operation(node) not in (_PRODUCT, _PRODUCT_BY_ID):
        return False
    weights = tensor_source(node, 0)
    return weights is not None and tensor_name(weights).endswith(".weight")


def _sum_of_rows(rows: int) -> tuple[NDArray[np.float64], int]:
    """Sum squares over all rows of a tensor [.., n_rows, n_channels]."""
    values = read_rows(rows, np.float32)
    if values is None:
        raise RuntimeError(f"the rows `{tensor_name(rows)}` are no float32 rows")
    flat = values.reshape(-1, values.shape[-1])
    return np.einsum("ij,ij->j", flat, flat).astype(np.float64), len(flat)


def _sums_of_experts(
    weights: int, rows: int, chosen: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum squares over the rows that each expert was given.

    Args:
        weights: [n_experts, n_out, n_channels].
        rows: [n_tokens, n_used or 1, n_channels]: with 1, all experts of a token read one row.
        chosen: [n_tokens, n_used] int32, the experts of a token.
    """
    values, ids = read_rows(rows, np.float32), read_rows(chosen, np.int32)
    if values is None or ids is None:
        raise RuntimeError(f"the rows `{tensor_name(rows)}` of experts are in another form")
    experts, inputs = ids[0, 0], values[0]
    n_experts = weight_shape(weights)[-3]
    squares = np.broadcast_to(inputs, (*experts.shape, inputs.shape[-1]))
    sum2 = np.zeros((n_experts, inputs.shape[-1]), dtype=np.float64)
    counts = np.bincount(experts.ravel(), minlength=n_experts)
    for expert in np.flatnonzero(counts):
        picked = squares[experts == expert]
        sum2[expert] = np.einsum("ij,ij->j", picked, picked)
    return sum2, counts.astype(np.int64)
