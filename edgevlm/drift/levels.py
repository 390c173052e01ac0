"""Which levels are compared, with which projectors, and against which baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from edgevlm.build.quantize import QuantizePlan, plan_quantization
from edgevlm.build.resolve import projector_of
from edgevlm.build.write_level import WrittenLevel
from edgevlm.errors import QuantizationError, SourceNotFoundError
from edgevlm.gguf_shards import read_model, shard_paths
from edgevlm.model_dir import FLOAT_LEVELS, ModelDir, ModelFile, role_and_level
from edgevlm.quantize.profile import Budget
from edgevlm.quantize.profile_file import load_profile, profile_names

USUAL_LEVELS = ("Q8_0", "Q5_K_M", "Q4_K_M")


@dataclass(frozen=True, kw_only=True)
class Side:
    """A text model and its projector, there or planned.

    Attributes:
        level: of the text model.
        text: its file; None where it is to be made.
        mmproj: its projector's file; None for none, or where it is to be made.
        plan: how it is made; None where both files are there.
        budget: what its profile accepts.
    """

    level: str
    text: Path | None
    mmproj: Path | None
    plan: QuantizePlan | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def text_name(self) -> str:
        """Name of the text model's file."""
        return self.text.name if self.text is not None else self._planned_name("text") or "none"

    @property
    def mmproj_level(self) -> str | None:
        """Level of the projector."""
        if self.mmproj is not None:
            return role_and_level(self.mmproj)[1]
        files = self.plan.files if self.plan is not None else ()
        return next((file.level for file in files if file.role == "mmproj"), None)

    @property
    def mmproj_name(self) -> str | None:
        """Name of the projector's file, where there is or will be one."""
        return self.mmproj.name if self.mmproj is not None else self._planned_name("mmproj")

    def _planned_name(self, role: str) -> str | None:
        files = self.plan.files if self.plan is not None else ()
        return next((file.name for file in files if file.role == role), None)


def baseline_of(
    model: ModelDir, *, asked: str | None, named: Path | None, mmproj: Path | None
) -> Side:
    """Choose the baseline: what was asked for, else the text model of 16 or 32 bits.

    A quantized file is a baseline only where it was asked for by name.

    Args:
        model: the model directory.
        asked: a level.
        named: the text model's file that the user named.
        mmproj: the projector's file that the user named.

    Raises:
        SourceNotFoundError: no such level.
        QuantizationError: there are no 16 bits, and no checkpoint to make them from.
    """
    found = model.find("text", asked) if asked is not None else model.baseline("text")
    if found is None and asked is None and named is not None:
        level = role_and_level(named)[1]
        if level in FLOAT_LEVELS:
            found = _file(named, level)
    if found is not None:
        own = model.baseline("mmproj") if found.level in FLOAT_LEVELS else None
        projector = mmproj or (own.path if own else projector_of(found, None)[0])
        return Side(level=found.level, text=found.path, mmproj=projector)
    if asked is not None and asked.upper() not in FLOAT_LEVELS:
        levels = ", ".join(file.level for file in model.of_role("text")) or "none"
        raise SourceNotFoundError(
            f"`{model.folder}` has no level {asked} to compare with (it has: {levels})",
            hint="name one of those with --baseline, or leave it out",
        )
    try:
        plan = plan_quantization(model, level=(asked or "F16").upper(), mmproj_level="F16")
    except QuantizationError as error:
        raise QuantizationError(
            f"there is no 16-bit baseline: {error.message}",
            hint="convert the checkpoint, or compare with a quantized level: --baseline LEVEL",
        ) from error
    return _planned(plan, mmproj=mmproj)


def levels_of(
    model: ModelDir,
    asked: Sequence[str],
    *,
    baseline: Side,
    named: Path | None,
    mmproj: Path | None,
) -> list[Side]:
    """Choose the levels: those asked for, else all quantized ones that are there, else the usual.

    Args:
        model: the model directory.
        asked: names of levels, or paths of profiles.
        baseline: what they are compared with.
        named: the text model's file that the user named: that one, where it is no baseline.
        mmproj: a projector's file for all of them.

    Raises:
        ProfileError: no such level.
        QuantizationError: a level is missing, and there is nothing to make it from.
    """
    if not asked and named is not None and named != baseline.text:
        return [_there(_file(named, role_and_level(named)[1]), mmproj)]
    wanted = list(asked) or [
        file.level for file in model.of_role("text") if file.level not in FLOAT_LEVELS
    ]
    sides: list[Side] = []
    for level in dict.fromkeys(wanted or USUAL_LEVELS):
        found = model.find("text", level)
        if found is not None:
            sides.append(_there(found, mmproj))
        else:
            plan = plan_quantization(model, level=level)
            planned = _planned(plan, mmproj=mmproj)
            sides.append(replace(planned, budget=load_profile(level).budget))
    return sides


def identity(path: Path, model: ModelDir) -> str:
    """Return what tells this file from another: its hash where it is known, else size and time."""
    entries = model.manifest.files if model.manifest is not None else []
    known = {file.path.absolute() for file in model.files if file.known}
    for entry in entries:
        if path.absolute() in known and entry.name == path.name:
            return entry.sha256
    stats = [part.stat() for part in shard_paths(path)]
    return " ".join([str(path.absolute()), *(f"{one.st_size} {one.st_mtime_ns}" for one in stats)])


def planned_identity(side: Side, role: str, baseline: str) -> str:
    """Return what tells a file that is to be made from another: its source and all its types."""
    files = side.plan.files if side.plan is not None else ()
    file = next((file for file in files if file.role == role), None)
    if file is None:
        return "none"
    types = [f"{name} {type_}" for name, type_ in file.plan.types.items()]
    return f"{file.level} of {baseline} " + sha256("\n".join(types).encode()).hexdigest()


def sizes_of(files: WrittenLevel) -> dict[str, object]:
    """Return bytes and bits per weight of both files, by the names of `report.Cost`."""
    text = read_model(files.text)
    facts: dict[str, object] = {
        "text_n_bytes": sum(part.stat().st_size for part in shard_paths(files.text)),
        "bits_per_weight": text.bits_per_weight,
        "mmproj_n_bytes": None,
        "mmproj_bits_per_weight": None,
    }
    if files.mmproj is not None:
        facts["mmproj_n_bytes"] = files.mmproj.stat().st_size
        facts["mmproj_bits_per_weight"] = read_model(files.mmproj).bits_per_weight
    return facts


def _file(path: Path, level: str) -> ModelFile:
    return ModelFile(
        path=path, role="text", level=level, mtime_ns=path.stat().st_mtime_ns, known=False
    )


def _there(file: ModelFile, mmproj: Path | None) -> Side:
    projector = mmproj if mmproj is not None else projector_of(file, None)[0]
    return Side(level=file.level, text=file.path, mmproj=projector, budget=_budget(file.level))


def _planned(plan: QuantizePlan, *, mmproj: Path | None) -> Side:
    text = next(file for file in plan.files if file.role == "text")
    kept = next((plan.folder / name for name in plan.kept), None)
    return Side(level=text.level, text=None, mmproj=mmproj or kept, plan=plan)


def _budget(level: str) -> Budget:
    return load_profile(level).budget if level in profile_names() else Budget()
