from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from edgevlm.drift.report import DriftReport
from edgevlm.drift.schema import report_schema
from tests.drift.made_report import made_report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compare.schema.json"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(DOCUMENT.read_text(encoding="utf-8"))


def validate(document: object, schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(document)  # pyright: ignore[reportUnknownMemberType]


def test_the_document_in_docs_is_todays() -> None:
    shown = json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"
    hint = "python -m edgevlm.drift.schema > docs/compare.schema.json"
    assert DOCUMENT.read_text(encoding="utf-8") == shown, hint


@pytest.mark.parametrize("given", [True, False])
def test_a_report_holds_to_it(schema: dict[str, Any], given: bool) -> None:
    report = made_report(tasks=given, layers=given, reference=given, limits=given, images=given)
    validate(json.loads(report.model_dump_json()), schema)
    assert DriftReport.model_validate_json(report.model_dump_json()) == report


def test_a_level_is_as_promised(schema: dict[str, Any]) -> None:
    level = json.loads(made_report().model_dump_json())["levels"][4]
    assert level["level"] == "Q4_K_M"
    assert set(level["image"]["mean_kld"]) == {"value", "low", "high"}


@pytest.mark.parametrize("key", ["schema_version", "levels", "machine"])
def test_what_lacks_something_is_refused(schema: dict[str, Any], key: str) -> None:
    document = json.loads(made_report().model_dump_json())
    del document[key]
    with pytest.raises(ValidationError):
        validate(document, schema)


def test_what_is_more_is_refused(schema: dict[str, Any]) -> None:
    document = json.loads(made_report().model_dump_json())
    document["levels"][0]["quality"] = 1
    with pytest.raises(ValidationError):
        validate(document, schema)
