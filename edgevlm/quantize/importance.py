"""An importance matrix as the encoder uses it: how much each input channel of a matrix counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
_LAYER = "blk."
_TEXT_NAMES = (_LAYER, "output.", *TOKEN_EMBEDDINGS)
# Types whose encoder does not look at it.
_UNWEIGHTED = frozenset({"F32", "F16", "BF16", "Q8_0"})
# Names in an error or a note.
_N_NAMED = 3
# Zeros that a projector's rows may grow by, see padding.py.
_MAX_GROWN = 256
_ANOTHER = "it was made for another model: `edgevlm calibrate` makes one of this"
_HINT = "make one with `edgevlm calibrate`, then pass `--imatrix FILE`"


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
        channels = self._of(info)
        if channels is None:
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

    def for_projector(self) -> Importance | None:
        """Return what is known of a projector's tensors, None for nothing."""
        names = [name for name in self.channels if not name.startswith(_TEXT_NAMES)]
        return Importance(channels={name: self.channels[name] for name in names}) if names else None

    def without(self, types: Mapping[str, str]) -> list[str]:
        """Return the tensors whose channels will count evenly, for nothing is known of them.

        Args:
            types: the types chosen, by tensor name.
        """
        return [
            name
            for name, type_ in types.items()
            if type_ not in _UNWEIGHTED and name not in self.channels and name not in _WITHOUT
        ]

    def _of(self, info: TensorInfo) -> NDArray[np.float32] | None:
        channels = self.channels.get(info.name)
        n_due = _n_channels(info)
        if channels is None or channels.size == n_due:
            return channels
        if info.name.startswith(_TEXT_NAMES):
            # For an embedding one of another size is no error (check_importance), and of no use.
            return None
        # A projector's rows that grew by zeros (padding.py): what such a channel counts is all one.
        grown = np.full(n_due, channels.mean(), dtype=np.float32)
        grown[: channels.size] = channels
        return grown


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
    if importance is not None:
        _check_names(channels, tensors)
        # llama.cpp excepts the token embedding, for which nothing useful is ever collected.
        _check_shapes(
            {name: one for name, one in channels.items() if name not in TOKEN_EMBEDDINGS}, tensors
        )
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


def _check_names(
    channels: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, TensorInfo]
) -> None:
    """Refuse channels of a layer that the model lacks; llama.cpp would pass over them."""
    if not channels.keys() & tensors.keys():
        raise QuantizationError(
            f"the importance matrix names no tensor of this model (it has {_listed(channels)})",
            hint=_ANOTHER,
        )
    is_text = any(name.startswith(_LAYER) for name in tensors)
    # A file of ours has the projector's channels beside those of the text model.
    own = [name for name in channels if not is_text or name.startswith(_LAYER)]
    strange = [name for name in own if name not in tensors]
    if strange:
        raise QuantizationError(
            f"the importance matrix has channels for {len(strange)} tensors that this model lacks:"
            f" {_listed(strange)}",
            hint=_ANOTHER,
        )


def _check_shapes(
    channels: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, TensorInfo]
) -> None:
    wrong = [
        f"{one.size} channels for `{name}`, the tensor has {_n_channels(tensors[name])}"
        for name, one in channels.items()
        if name in tensors and not _fits(name, tensors[name], one)
    ]
    if wrong:
        some = "; ".join(wrong[:_N_NAMED])
        raise QuantizationError(
            f"the importance matrix differs in {len(wrong)} tensors: it has {some}"
            + (" ..." if len(wrong) > _N_NAMED else ""),
            hint=_ANOTHER,
        )


def _fits(name: str, info: TensorInfo, channels: NDArray[np.float32]) -> bool:
    n_due = _n_channels(info)
    has_grown = not name.startswith(_TEXT_NAMES) and n_due - _MAX_GROWN < channels.size < n_due
    return channels.size == n_due or has_grown


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    some = ", ".join(f"`{name}`" for name in every[:_N_NAMED])
    return (some or "nothing") + (" ..." if len(every) > _N_NAMED else "")


def _n_channels(info: TensorInfo) -> int:
    """Input channels of a tensor over all its matrices."""
    n_matrices = info.shape[-3] if len(info.shape) > 2 else 1
    return n_matrices * (info.shape[-1] if info.shape else 1)
