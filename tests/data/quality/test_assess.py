"""One report over all checks: what each finding does, what is counted, and what is refused in which words."""

from __future__ import annotations

import json
import sys

import pytest
from pydantic import ValidationError

from llmops.data.quality import Against, Quality, Surroundings, assess, pii, require_clean
from llmops.data.quality.config import CHECKS, Length
from llmops.data.quality.length import lengths
from llmops.errors import ConfigError, DataError, InvalidEvidence
from llmops.records import QualityReport
from llmops.schema import load_record
from tests.data.quality.planted import case, row, rows_of, words

LONG = " ".join(words(1, 60))
SUITE = Surroundings(lambda: Against((case(words(1, 60)),)))


def test_each_action_does_what_it_says_and_every_row_is_accounted_for() -> None:
    rows = rows_of(["a", "b", "a", LONG])
    kept = assess(rows, Quality(), "rows", SUITE)
    assert (len(kept.rows), kept.dropped) == (4, ())
    assert kept.report.checks["duplicates"].n_found == 1
    assert kept.report.refused == ("contamination",)
    dropped = assess(
        rows, Quality.model_validate({"duplicates": "drop", "contamination": "drop"}), "rows", SUITE
    )
    assert [r.source for r in dropped.rows] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert [(d.source, d.reason.partition(":")[0]) for d in dropped.dropped] == [
        ("rows.jsonl:3", "duplicate"),
        ("rows.jsonl:4", "contamination"),
    ]
    assert dropped.report.n_rows == len(dropped.rows) + dropped.report.n_dropped
    assert assess(rows, Quality().only(), "rows", SUITE).report.checks == {}


def test_rows_that_nothing_was_dropped_from_are_the_very_same_sequence() -> None:
    rows = rows_of(["a", "b", "a"])
    found = assess(rows, Quality(), "rows")
    assert found.rows is rows
    assert not found.changed


def test_refusal_names_check_worst_rows_and_what_to_do() -> None:
    report = assess(rows_of(["x", LONG]), Quality(), "data of r", SUITE).report
    with pytest.raises(DataError) as caught:
        require_clean(report, "data of r")
    assert str(caught.value) == (
        "data of r: rows.jsonl:2: contamination: 100% of case 000000000000 of suite s (cases.jsonl:1): 1 of 2 rows are "
        "refused by quality.contamination; take them out, or set quality.contamination: {action: drop} (report lets "
        "them in)"
    )


def test_report_mode_lets_a_leak_in_and_says_so() -> None:
    report = assess(
        rows_of([LONG]), Quality.model_validate({"contamination": "report"}), "rows", SUITE
    ).report
    require_clean(report, "rows")
    assert report.checks["contamination"].n_found == 1
    assert report.settings["contamination"]["action"] == "report"


@pytest.mark.parametrize("kind", [DataError, InvalidEvidence])
def test_suites_that_cannot_be_read_are_refused_unless_findings_are_only_reported(
    kind: type[Exception],
) -> None:
    def broken() -> Against:
        raise kind("s.yaml: no such file; check the path")

    with pytest.raises(kind, match=r"rows cannot be compared with the suites \(s.yaml: no such file"):
        assess(rows_of(["a"]), Quality(), "rows", Surroundings(broken))
    settings = Quality.model_validate({"contamination": "report"})
    report = assess(rows_of(["a"]), settings, "rows", Surroundings(broken)).report
    assert report.checks["contamination"].not_checked == "s.yaml: no such file; check the path"


def test_missing_library_is_said_in_a_report_and_refused_in_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmops.data.quality.checks.installed", lambda: False)
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    pii._recogniser.cache_clear()
    report = assess(rows_of(["a@b.org"]), Quality.model_validate({"pii": "report"}), "rows").report
    assert report.checks["pii"].not_checked == "presidio-analyzer is not installed: pip install 'llmops[pii]'"
    with pytest.raises(
        ConfigError, match=r"quality.pii: needs presidio-analyzer .*pip install 'llmops\[pii\]'"
    ):
        assess(rows_of(["a@b.org"]), Quality.model_validate({"pii": "redact"}), "rows")


def test_report_survives_the_store_and_holds_plain_values() -> None:
    report = assess(rows_of(["a", "a", LONG]), Quality().only("duplicates", "length"), "rows").report
    again = load_record(QualityReport, json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert report.checks["length"].distribution["max_characters"] == len(LONG) + len("Yes, it does.")


def test_word_alone_is_the_action_and_wrong_ones_are_refused() -> None:
    assert Quality.model_validate({"pii": "refuse"}).pii.action == "refuse"
    assert Quality.model_validate({"contamination": False}).contamination.action == "off"
    for wrong in (
        {"duplicates": "redact"},
        {"piii": "drop"},
        {"pii": {"acton": "drop"}},
        {"language": "drop"},
    ):
        with pytest.raises(ValidationError):
            Quality.model_validate(wrong)


def test_reporting_turns_on_what_is_off_and_leaves_gates_as_they_are() -> None:
    settings = Quality.model_validate({"contamination": "off", "duplicates": "refuse"}).reporting()
    assert [settings.action_of(c) for c in CHECKS] == [
        "report",
        "refuse",
        "report",
        "report",
        "report",
        "report",
    ]


def test_lengths_are_counted_in_characters_and_tokens_and_limits_hold_at_their_own_value() -> None:
    rows = [row("abcd", "e" * n, line=n) for n in (1, 5, 9)]  # 5, 9 and 13 characters
    found = lengths(rows, Length(min_characters=9, max_characters=12), None)
    assert [f.reason for f in found.findings] == [
        "too short: 5 characters, limit 9",
        "too long: 13 characters, limit 12",
    ]
    by_word = lengths(rows, Length(max_tokens=9), lambda texts: [len(t) for t in texts])
    assert [f.reason for f in by_word.findings] == ["too long: 13 tokens, limit 9"]
    assert by_word.distribution["median_tokens"] == 9
    assert by_word.distribution["mean_characters"] == 9
    assert (
        lengths(rows, Length(max_tokens=9), None).not_checked
        == "limits in tokens: no tokenizer is known here"
    )


def test_unknown_language_ends_the_check_with_its_name() -> None:
    with pytest.raises(ConfigError, match="'xx'"):
        assess(
            rows_of(["a"]),
            Quality.model_validate({"language": {"action": "drop", "expected": ["xx"]}}),
            "rows",
        )
