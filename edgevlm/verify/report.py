"""What verification found, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["pass", "warn", "fail", "not observable", "not checked"]
# From best to worst, for the verdict over several stages.
_RANK: Mapping[Status, int] = {
    "pass": 0,
    "not observable": 0,
    "not checked": 0,
    "warn": 1,
    "fail": 2,
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the way from a prompt to its answer.

    Attributes:
        name: such as "vision embeddings".
        status: "not observable" where the runtime does not show it, "not checked" where nothing
            was there to hold it against; neither is a pass.
        summary: numbers in a sentence.
        cause: the likely cause in words, and what to do; "" for a pass.
        numbers: what the summary says, to be read by programs.
    """

    name: str
    status: Status
    summary: str
    cause: str = ""
    numbers: Mapping[str, float | int | str | None] = field(
        default_factory=dict[str, "float | int | str | None"]
    )


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The verdict on one model.

    Attributes:
        text_file: name of the text model's file.
        mmproj_file: name of the projector's file, "" without one.
        against: what it was held against, in words; "" without a reference.
        stages: in the order of the data's way.
        losses: what the runtime is known not to do with this model, stated at conversion.
        n_left_out: prompts of the reference whose images were not given.
    """

    text_file: str
    mmproj_file: str
    against: str
    stages: tuple[Stage, ...]
    losses: tuple[str, ...] = ()
    n_left_out: int = 0

    @property
    def verdict(self) -> Status:
        """The worst of all stages: "pass", "warn" or "fail"."""
        return worst([stage.status for stage in self.stages])

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {
            "verdict": self.verdict,
            "text_file": self.text_file,
            "mmproj_file": self.mmproj_file,
            "against": self.against,
            "losses": list(self.losses),
            "prompts_left_out": self.n_left_out,
            "stages": [
                {
                    "name": stage.name,
                    "status": stage.status,
                    "summary": stage.summary,
                    "cause": stage.cause,
                    "numbers": {key: _json_number(value) for key, value in stage.numbers.items()},
                }
                for stage in self.stages
            ],
        }


def _json_number(value: float | int | str | None) -> float | int | str | None:
    """Return a value that JSON has: what is no number becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def worst(statuses: Sequence[Status]) -> Status:
    """Return the worst status; "pass" where none is worse."""
    found: Status = "pass"
    for status in statuses:
        if _RANK[status] > _RANK[found]:
            found = status
    return found


def because_of(cause: str, losses: Sequence[str]) -> str:
    """Return a cause, with a word where the file itself says that the runtime does otherwise."""
    return f"{cause}; a known loss of this file may explain it" if losses else cause
