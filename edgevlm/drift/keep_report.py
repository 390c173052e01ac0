"""The last drift report stays in its model's manifest, for `edgevlm card`."""

from __future__ import annotations

from edgevlm.build.output import write_manifest
from edgevlm.drift.card import REPORT_KEY
from edgevlm.drift.report import DriftReport
from edgevlm.errors import EdgeVLMError
from edgevlm.files import write_together
from edgevlm.manifest import MANIFEST_NAME, read_manifest
from edgevlm.model_dir import ModelDir


def keep_report(model: ModelDir, report: DriftReport) -> str | None:
    """Write a report into the manifest, without its answers and pictures.

    Returns:
        Why it could not be kept, None when it was or the directory has no manifest.
    """
    if model.manifest is None:
        return None
    document = report.model_copy(update={"changed": []}).model_dump()
    try:
        with write_together(model.folder, names=[MANIFEST_NAME], n_bytes=0, force=True) as output:
            # Read again under the lock: another run may have added a level.
            manifest = read_manifest(model.folder) or model.manifest
            drift = {**manifest.drift, REPORT_KEY: document}
            write_manifest(output, manifest.model_copy(update={"drift": drift}))
    except EdgeVLMError as error:
        return f"the report was not kept for `edgevlm card`: {error.message}"
    return None
