"""The JSON Schema of the drift report, as docs/compare.schema.json holds it.

    python -m edgevlm.drift.schema > docs/compare.schema.json

A test compares the two.
"""

from __future__ import annotations

import json
import sys

from edgevlm.drift.report import SCHEMA_VERSION, DriftReport


def report_schema() -> dict[str, object]:
    """Return the schema of what `edgevlm compare --json` prints."""
    schema = DriftReport.model_json_schema(mode="serialization")
    # pydantic asks for no field with a default; a document always says its version.
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgevlm:compare:{SCHEMA_VERSION}",
        **schema,
        "required": list(DriftReport.model_fields),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n")
