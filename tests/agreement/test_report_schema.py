"""What reports print as JSON is what docs/report_schema.json says."""

import json
import pathlib

import jsonschema
import numpy as np
import pytest

from multibackend_lstm.agreement import Finding, Report, check, compare
from multibackend_lstm.agreement.comparison import GROUPS
from multibackend_lstm.agreement.report import SCHEMA, TargetResult

from . import cases

PATH = pathlib.Path(__file__).parents[2] / "docs" / "report_schema.json"
SCHEMA_OF_REPORTS = json.loads(PATH.read_text())


def validate(document):
    jsonschema.Draft202012Validator.check_schema(SCHEMA_OF_REPORTS)
    jsonschema.validate(json.loads(json.dumps(document, allow_nan=False)), SCHEMA_OF_REPORTS)


def test_a_report_of_a_check(workers):
    document = check(cases.small(), workers=workers, steps=2).to_json()
    assert document["schema"] == SCHEMA
    validate(document)


def test_a_report_of_everything_that_goes_wrong():
    values = np.ones((2, 3), "float32")
    comparisons = [
        compare("layer", "a", values, np.full((2, 3), np.nan), floor=0.0),
        compare("output", "b", values, values[:1], floor=0.0),
        compare("weight", "c", values, 2.0 * values, floor=1e-9),
    ]
    result = TargetResult("torch@cpu", comparisons=comparisons, failed={"training": "it does not"})
    finding = Finding("torch@cpu", "disagrees", "layers", "it is off", known={"id": "x"})
    report = Report(
        "case", "float64", True, {}, [result], [finding], {1: (0.5, 1.0), 2: (np.inf, np.nan)}
    )
    validate(report.to_json())


def test_the_schema_can_fail_and_knows_all_kinds():
    report = Report("case", "float64", True, {}).to_json()
    validate(report)
    for wrong in ({"schema": 0}, {"agrees": "yes"}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validate({**report, **wrong})
    kinds = SCHEMA_OF_REPORTS["$defs"]["comparison"]["properties"]["kind"]["enum"]
    assert set(kinds) == {kind for group in GROUPS.values() for kind in group}
