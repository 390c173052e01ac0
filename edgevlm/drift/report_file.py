"""A drift report read back: what `edgevlm compare --json` printed, or the manifest keeps."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from edgevlm.drift.report import SCHEMA_VERSION, DriftReport
from edgevlm.errors import ReportError

# Thumbnails and all, far above any real one; a stranger's file makes us read no more.
_MAX_BYTES = 256 << 20
_HINT = "give what `edgevlm compare --json` printed"


def read_report(path: Path) -> DriftReport:
    """Read a report.

    Raises:
        ReportError: no such file, or not a report of this version.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ReportError(f"`{path}` is larger than any report", hint=_HINT)
        content = path.read_bytes()
    except OSError as error:
        raise ReportError(f"cannot read `{path}`: {error.strerror}", hint=_HINT) from error
    try:
        report = DriftReport.model_validate_json(content)
    except ValidationError as error:
        raise ReportError(f"`{path}` is no drift report: {_first(error)}", hint=_HINT) from error
    if not report.levels:
        raise ReportError(f"`{path}` has no level", hint=_HINT)
    return report


def kept_report(document: object) -> DriftReport | None:
    """Return the report that a manifest keeps, None where it is of another version or broken."""
    try:
        report = DriftReport.model_validate(document)
    except ValidationError:
        return None
    return report if report.levels else None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if where == "schema_version":
        return f"this edgevlm reads version {SCHEMA_VERSION}"
    return f"{where}: {first['msg']}" if where else str(first["msg"])
