from __future__ import annotations

import doctest
import hashlib
from dataclasses import replace

import pytest

import llmops.schema
from llmops.errors import InvalidEvidence
from llmops.records import (
    Case,
    Check,
    Decision,
    EngineSignature,
    Message,
    MetricResult,
    PromptContract,
    Report,
)
from llmops.schema import canonical_json, digest_of, load_record

ENGINE = EngineSignature("transformers", "5.19.0", "float32", None, "cpu", "b" * 64, 512)
CHECK = Check("rougeL", "superior", 0.0, 27.0, 14.8, 12.2, 9.7, 14.7, 0.95, 128, "PASS", None, "paired t")
RECORDS = [
    PromptContract("{{ messages }}", "a" * 64, (2, 5), None),
    Report(
        "s", "d", "base@1", "m", "b", "p", ENGINE, "session", {"temperature": 0}, "c", "k", 1, 1, 0,
        {"bleu": MetricResult(1.0, 0.5, 1.5, 0.9, "sig")}, ("why",), "2026-01-01T00:00:00.000Z",
    ),
    Decision("g", "d", 1, "name", "c", "b", None, "b", ("r1", "r2"), ENGINE, "PASS", (CHECK,), (), None, 2,
        "2026-01-01T00:00:00.000Z"),
]  # fmt: skip


def test_doctests_hold() -> None:
    assert doctest.testmod(llmops.schema).failed == 0


def test_digest_is_sha256_of_sorted_compact_utf8_json() -> None:
    assert (
        digest_of({"b": [1, 2.5, None], "a": "é"})
        == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()
    )


def test_values_that_json_cannot_carry_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": float("nan")})


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_record_survives_the_way_to_json_and_back(record: Report | Decision | PromptContract) -> None:
    again = load_record(type(record), record.to_dict())
    assert again == record
    assert again.digest() == record.digest()


def test_unknown_major_version_is_refused() -> None:
    data = RECORDS[0].to_dict() | {"schema": "llmops.prompt_contract/2"}
    with pytest.raises(InvalidEvidence, match=r"prompt_contract/2.*use the version that wrote it"):
        load_record(PromptContract, data)


def test_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(InvalidEvidence, match="tempalte"):
        load_record(PromptContract, RECORDS[0].to_dict() | {"tempalte": "x"})


def test_value_of_a_wrong_type_is_refused_by_name() -> None:
    with pytest.raises(InvalidEvidence, match="eos_token_ids"):
        load_record(PromptContract, RECORDS[0].to_dict() | {"eos_token_ids": ["end"]})


def test_case_digest_covers_prompt_and_references_but_not_where_they_stood() -> None:
    case = Case((Message("user", "q"),), ("a",), "module", "x.py:1")
    assert replace(case, source="y.py:9", group="other").digest == case.digest
    assert replace(case, references=("b",)).digest != case.digest
    assert replace(case, messages=(Message("system", "q"),)).digest != case.digest
