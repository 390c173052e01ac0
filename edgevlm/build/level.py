"""What a user asks of a level, as one value: its profile, overrides, an importance matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm_convert.writer import GGUFPlan

from edgevlm.build.output import FilePlan
from edgevlm.errors import ProfileError
from edgevlm.files import sha256_file
from edgevlm.manifest import ImatrixRecord
from edgevlm.quantize.encode import LevelEncoder, text_encoder
from edgevlm.quantize.imatrix_file import Imatrix, read_imatrix
from edgevlm.quantize.importance import Importance
from edgevlm.quantize.profile import QuantProfile
from edgevlm.quantize.profile_file import load_profile, with_tensor_types


@dataclass(frozen=True, kw_only=True)
class ChosenLevel:
    """A level, read and checked as far as it can be without a model.

    Attributes:
        profile: its rules, overrides first.
        imatrix: the importance matrix, None for none.
        record: of it, for the manifest.
    """

    profile: QuantProfile
    imatrix: Imatrix | None
    record: ImatrixRecord | None

    def encoder(self) -> LevelEncoder:
        """Return the encoder of the text model."""
        importance = self.imatrix.importance if self.imatrix is not None else None
        return text_encoder(self.profile, importance=importance)

    def projector_importance(self) -> Importance | None:
        """Return what the importance matrix knows of the projector, None for nothing."""
        return self.imatrix.importance.for_projector() if self.imatrix is not None else None

    def record_of(self, encoder: LevelEncoder | None, plan: GGUFPlan) -> ImatrixRecord | None:
        """Return what the manifest says of the importance matrix in a file, None for none."""
        if self.record is None or encoder is None or encoder.importance is None:
            return None
        without = encoder.importance.without(plan.types)
        return self.record.model_copy(update={"n_without": len(without)})


def choose_level(
    level: str, *, tensor_types: Sequence[str] = (), imatrix: Path | None = None
) -> ChosenLevel:
    """Read a level and what goes with it.

    Args:
        level: a level's name or a profile's path.
        tensor_types: `REGEX=TYPE`, for tensors of the text model; the first that matches wins.
        imatrix: file of an importance matrix.

    Raises:
        ProfileError: no such level, or an override that is none.
        QuantizationError: the file is no importance matrix.
    """
    profile = with_tensor_types(load_profile(level), tensor_types)
    if imatrix is None:
        return ChosenLevel(profile=profile, imatrix=None, record=None)
    read = read_imatrix(imatrix)
    record = ImatrixRecord(
        sha256=sha256_file(imatrix),
        datasets=list(read.datasets),
        n_chunks=read.n_chunks,
        n_unseen=len(read.unseen),
        n_images=read.n_images,
        n_prompts=read.n_prompts,
    )
    return ChosenLevel(profile=profile, imatrix=read, record=record)


def check_rules_used(profile: QuantProfile, files: Sequence[FilePlan]) -> None:
    """Refuse a rule of the user's own that decides no tensor of any file.

    A projector that keeps a level of its own is not asked, nor is one that is not written.

    Raises:
        ProfileError: it names the rule.
    """
    encoders = [(file, file.encoder) for file in files if isinstance(file.encoder, LevelEncoder)]
    used = {
        rule
        for file, encoder in encoders
        for rule in encoder.used_rules(
            [tensor.info for tensor in file.plan.tensors], file.plan.metadata
        )
    }
    asked: set[str] = {file.role for file, encoder in encoders if encoder.profile is not None}
    for rule in profile.expected:
        listed = {"text": rule in profile.rules, "mmproj": rule in profile.mmproj.rules}
        if rule not in used and any(listed[role] for role in asked):
            raise ProfileError(
                f"the rule {rule} decides no tensor of this model",
                hint="`edgevlm inspect FILE.gguf` lists the tensors; norms and biases are never"
                " quantized, and an earlier rule may take all that it names",
            )
