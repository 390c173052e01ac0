"""The encoder that `convert --level` and `quantize` share: types by profile, blocks by ggml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import u32
from numpy.typing import NDArray

from edgevlm.errors import QuantizationError
from edgevlm.ggml_types import FILE_TYPES, tensor_n_bytes
from edgevlm.native.ggml import quantize_rows
from edgevlm.quantize.importance import Importance, check_importance
from edgevlm.quantize.plan import TypePlan, plan_text
from edgevlm.quantize.profile import QuantProfile, Rule
from edgevlm.quantize.projector_plan import plan_projector

MMPROJ_LEVELS = ("F16", "BF16", "Q8_0")
# Version of the block formats (ggml.h, GGML_QNT_VERSION), written into every quantized file.
_QUANTIZATION_VERSION = 2
_FILE_TYPE_IDS = {name: id_ for id_, name in FILE_TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class LevelEncoder:
    """A TensorEncoder of one level, for one kind of file.

    Attributes:
        level: what the file will be called, such as "Q4_K_M".
        is_projector: whether it is for mmproj files rather than text models.
        profile: the level's rules; None only for a projector without a profile.
        importance: how much each input channel counts; None: all the same.
    """

    level: str
    is_projector: bool
    profile: QuantProfile | None
    importance: Importance | None = None

    def plan(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> tuple[dict[str, str], dict[str, object]]:
        """Return the type of every tensor, and the two keys that state the level.

        Raises:
            QuantizationError: the metadata lacks what the rules need, a type needs an importance
                matrix, or the one given belongs to another model.
        """
        types = dict(self._types(tensors, metadata).types)
        check_importance(self.importance, types, {tensor.name: tensor for tensor in tensors})
        file_type = self.level
        if not self.is_projector and self.profile is not None:
            file_type = self.profile.file_type
        return types, {
            "general.quantization_version": u32(_QUANTIZATION_VERSION),
            "general.file_type": u32(_FILE_TYPE_IDS[file_type]),
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
            return plan_projector(self.level, tensors, metadata, profile=self.profile)
        has_imatrix = self.importance is not None
        return plan_text(self.profile, tensors, metadata, has_imatrix=has_imatrix)


def text_encoder(profile: QuantProfile, *, importance: Importance | None = None) -> LevelEncoder:
    """Return the encoder of a text model at this level."""
    return LevelEncoder(
        level=profile.name, is_projector=False, profile=profile, importance=importance
    )


def mmproj_encoder(level: str, *, profile: QuantProfile | None = None) -> LevelEncoder:
    """Return the encoder of a projector: F16, BF16 or Q8_0 for its matrices.

    Args:
        level: in any case.
        profile: the text model's level; its `[mmproj]` rules hold where `level` is its own.

    Raises:
        QuantizationError: another level.
    """
    level = level.upper()
    if level not in MMPROJ_LEVELS:
        raise QuantizationError(
            f"a projector cannot be stored as `{level}`",
            hint=f"--mmproj-level is one of {', '.join(MMPROJ_LEVELS)}",
        )
    return LevelEncoder(level=level, is_projector=True, profile=profile)
