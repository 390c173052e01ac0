"""An importance matrix as the encoder uses it: how much each input channel of a matrix counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from numpy.typing import NDArray

from edgevlm.errors import QuantizationError
from edgevlm.quantize.tensors import TOKEN_EMBEDDINGS

# Without one their blocks are garbage, and llama.cpp refuses (llama-quant.cpp,
# tensor_requires_imatrix). Embeddings and the output are excepted there: nothing is collected
# for them.
_NEEDED_BY = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
_WITHOUT = frozenset({*TOKEN_EMBEDDINGS, "output.weight"})
_HINT = "make one with `llama-imatrix`, then pass `--imatrix FILE`"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance per input channel, by tensor name.

    Attributes:
        channels: [n_matrices * row_length] float32 each; experts have channels of their own.
    """

    channels: Mapping[str, NDArray[np.float32]]

    def of_rows(
        self, info: TensorInfo, first_row: int, n_rows: int
    ) -> Iterator[tuple[slice, NDArray[np.float32] | None]]:
        """Yield the pieces of `n_rows` rows from `first_row` on that share one importance."""
        channels = self.channels.get(info.name)
        # For an embedding one of another size is no error (check_importance), and of no use.
        if channels is None or channels.size != _n_channels(info):
            yield slice(0, n_rows), None
            return
        n_channels = info.shape[-1]
        per_matrix = info.shape[-2] if len(info.shape) > 1 else 1
        start = first_row
        while start < first_row + n_rows:
            matrix = start // per_matrix
            stop = min(first_row + n_rows, (matrix + 1) * per_matrix)
            part = channels[matrix * n_channels : (matrix + 1) * n_channels]
            yield slice(start - first_row, stop - first_row), part
            start = stop


def check_importance(
    importance: Importance | None, types: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> None:
    """Hold an importance matrix against the types that were chosen.

    Args:
        importance: None for none.
        types: the types chosen, by tensor name.
        tensors: all tensors of the file, by name.

    Raises:
        QuantizationError: it belongs to another model, or a type needs one that is not there.
    """
    channels: Mapping[str, NDArray[np.float32]] = {}
    if importance is not None:
        channels = importance.channels
    if importance is not None and not channels.keys() & tensors.keys():
        some = ", ".join(f"`{name}`" for name in sorted(channels)[:3]) or "nothing"
        raise QuantizationError(
            f"the importance matrix names no tensor of this model (it has {some})",
            hint="it was made for another model",
        )
    for name, info in tensors.items():
        # llama.cpp excepts the token embedding, for which nothing useful is ever collected.
        if name in channels and name not in TOKEN_EMBEDDINGS:
            _check_shape(name, info, channels[name])
    missing = [
        name
        for name, type_ in types.items()
        if type_ in _NEEDED_BY
        and name not in channels
        and name not in _WITHOUT
        # What stays as it was in the source needs nothing.
        and type_ != tensors[name].type
    ]
    if missing:
        raise QuantizationError(
            f"tensor `{missing[0]}` as {types[missing[0]]} needs an importance matrix"
            + (f", and so do {len(missing) - 1} more" if len(missing) > 1 else ""),
            hint=_HINT,
        )


def _check_shape(name: str, info: TensorInfo, channels: NDArray[np.float32]) -> None:
    n_due = _n_channels(info)
    if channels.size != n_due:
        raise QuantizationError(
            f"the importance matrix has {channels.size} channels for `{name}`, the tensor has"
            f" {n_due}",
            hint="it was made for another model",
        )


def _n_channels(info: TensorInfo) -> int:
    """Input channels of a tensor over all its matrices."""
    n_matrices = info.shape[-3] if len(info.shape) > 2 else 1
    return n_matrices * (info.shape[-1] if info.shape else 1)
