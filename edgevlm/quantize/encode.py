"""The encoder that `convert --level` and `quantize` share: types by profile, blocks by ggml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import u32
from numpy.typing import NDArray

from edgevlm.errors import QuantizationError
from edgevlm.ggml_types import FILE_TYPES, tensor_n_bytes
from edgevlm.native.ggml import quantize_rows
from edgevlm.quantize.importance import Importance, check_importance
from edgevlm.quantize.padding import padded_metadata, padded_shapes
from edgevlm.quantize.plan import TypePlan, plan_text
from edgevlm.quantize.profile import MMPROJ_LEVELS, QuantProfile, Rule
from edgevlm.quantize.projector_plan import is_plain, plan_projector

# Version of the block formats (ggml.h, GGML_QNT_VERSION), written into every quantized file.
QUANTIZATION_VERSION = 2
_FILE_TYPE_IDS = {name: id_ for id_, name in FILE_TYPES.items()}
# Types that no file type is called after: the one whose matrices they are.
_FILE_TYPE_OF = {"Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}


@dataclass(frozen=True, kw_only=True)
class LevelEncoder:
    """A TensorEncoder of one level, for one kind of file.

    Attributes:
        level: what the file will be called, such as "Q4_K_M".
        is_projector: whether it is for mmproj files rather than text models.
        profile: the level's rules; None only for a projector that its type alone decides.
        type: of a projector's matrices where no rule says otherwise; "" for a text model.
        importance: how much each input channel counts; None: all the same.
    """

    level: str
    is_projector: bool
    profile: QuantProfile | None
    type: str = ""
    importance: Importance | None = None

    def shapes(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of a projector's tensors that grow by zeros, see padding.py."""
        if not self.is_projector:
            return {}
        return padded_shapes(tensors, metadata, lambda some: self._types(some, metadata).types)

    def plan(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> tuple[dict[str, str], dict[str, object]]:
        """Return the type of every tensor, and the keys that state the level and what has grown.

        Raises:
            QuantizationError: the metadata lacks what the rules need, a type needs an importance
                matrix, or the one given belongs to another model.
        """
        types = dict(self._types(tensors, metadata).types)
        check_importance(self.importance, types, {tensor.name: tensor for tensor in tensors})
        file_type = _FILE_TYPE_OF.get(self.type, self.type)
        if not self.is_projector and self.profile is not None:
            file_type = self.profile.file_type
        grown = padded_metadata(tensors, metadata) if self.is_projector else {}
        return types, {
            "general.quantization_version": u32(QUANTIZATION_VERSION),
            "general.file_type": u32(_FILE_TYPE_IDS[file_type]),
            **grown,
        }

    def used_rules(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object]
    ) -> frozenset[Rule]:
        """Return the profile's rules that decide a tensor at least."""
        return self._types(tensors, metadata).used

    def n_bytes(self, shape: tuple[int, ...], type: str, /) -> int:
        """Return the size of a tensor of `shape` (numpy order) in `type`."""
        return tensor_n_bytes(shape, type)

    def encode(
        self, info: TensorInfo, rows: NDArray[np.float32], type: str, /, *, first_row: int
    ) -> bytes:
        """Encode float32 rows [n_rows, row_length] with ggml's kernel of `type`. Thread-safe.

        Raises:
            QuantizationError: a value is not finite.
        """
        if self.importance is None:
            return quantize_rows(rows, type)
        pieces = self.importance.of_rows(info, first_row, len(rows))
        return b"".join(quantize_rows(rows[part], type, channels) for part, channels in pieces)

    def _types(self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object]) -> TypePlan:
        if self.is_projector or self.profile is None:
            return plan_projector(self.type, tensors, metadata, profile=self.profile)
        has_imatrix = self.importance is not None
        return plan_text(self.profile, tensors, metadata, has_imatrix=has_imatrix)


def text_encoder(profile: QuantProfile, *, importance: Importance | None = None) -> LevelEncoder:
    """Return the encoder of a text model at this level."""
    return LevelEncoder(
        level=profile.name, is_projector=False, profile=profile, importance=importance
    )


def mmproj_encoder(
    level: str, *, profile: QuantProfile | None = None, importance: Importance | None = None
) -> LevelEncoder:
    """Return the encoder of a projector.

    The file is called by `level`, or by the profile where that makes something else of it.

    Args:
        level: one of MMPROJ_LEVELS, in any case.
        profile: the text model's level; its `[mmproj]` rules hold where `level` is its own.
        importance: how much each input channel counts; None: all the same.

    Raises:
        QuantizationError: another level.
    """
    type_ = level.upper()
    if type_ not in MMPROJ_LEVELS:
        near = get_close_matches(type_, MMPROJ_LEVELS, n=1)
        raise QuantizationError(
            f"a projector cannot be stored as `{level}`",
            hint=(f"did you mean {near[0]}? " if near else "")
            + f"--mmproj-level is one of {', '.join(MMPROJ_LEVELS)}",
        )
    if profile is None or profile.mmproj.type != type_ or is_plain(profile):
        own, name = None, type_
    else:
        own, name = profile, profile.name
    return LevelEncoder(
        level=name, is_projector=True, profile=own, type=type_, importance=importance
    )
