"""An encoder that quantizes some tensors of a text model and leaves all others as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import u32

from edgevlm.quantize.encode import QUANTIZATION_VERSION, LevelEncoder


@dataclass(frozen=True, kw_only=True)
class PartEncoder(LevelEncoder):
    """A TensorEncoder to find out what one part of a text model costs.

    Attributes:
        types: tensor type by name, of the part alone.
    """

    types: Mapping[str, str] = field(default_factory=dict[str, str])

    def plan(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> tuple[dict[str, str], dict[str, object]]:
        """Return the type of every tensor; the file type stays the source's."""
        types = {tensor.name: self.types.get(tensor.name, tensor.type) for tensor in tensors}
        return types, {"general.quantization_version": u32(QUANTIZATION_VERSION)}


def part_encoder(types: Mapping[str, str]) -> PartEncoder:
    """Return the encoder of one part, given the types of its tensors by name."""
    return PartEncoder(level="part", is_projector=False, profile=None, types=types)
