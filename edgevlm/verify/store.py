"""Keep a verdict in the manifest of the model that it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from edgevlm.files import write_together
from edgevlm.manifest import MANIFEST_NAME, read_manifest
from edgevlm.verify.report import VerifyReport

_ALLOWANCE_BYTES = 4 << 20


def keep_verdict(report: VerifyReport, folder: Path) -> bool:
    """Write a verdict into the manifest of `folder`, in place of an older one of the same file.

    Returns:
        False when there is no manifest, or it does not know the file.
    """
    manifest = read_manifest(folder)
    if manifest is None or report.text_file not in {entry.name for entry in manifest.files}:
        return False
    verdict = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **report.to_dict()}
    changed = manifest.model_copy(update={"verify": {**manifest.verify, report.text_file: verdict}})
    with write_together(
        folder, names=[MANIFEST_NAME], n_bytes=_ALLOWANCE_BYTES, force=True
    ) as output:
        output.create(MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
    return True
