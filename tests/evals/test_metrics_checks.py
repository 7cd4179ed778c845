"""Yes-or-no metrics: what an answer must hold, as the suite or as its case says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops.errors import ConfigError, DataError
from llmops.evals.metrics import Answer, score
from llmops.evals.metrics.calls import calls_match, canonical_arguments
from llmops.records import Case, Message, ToolCall
from tests.evals.scoring import completion
from tests.evals.test_metrics_words import resolved


def case(i: int = 1, **expected: Any) -> Case:
    return Case((Message("user", f"q{i}"),), (), f"g{i}", f"cases.jsonl:{i}", expected=expected)


def hits(spelt: Any, *pairs: tuple[Case, str], folder: Path = Path()) -> list[float]:
    """What the metric says of each text as the answer to its case."""
    metric = resolved(spelt, folder)
    found = score([metric], [Answer(c, (completion(c, text),)) for c, text in pairs])[metric.name]
    assert set(found.per_case) <= {0.0, 100.0}
    assert (found.kind, found.unit) == ("binary", "points")
    return found.per_case.tolist()


def texts(*said: str) -> list[tuple[Case, str]]:
    return [(case(i), text) for i, text in enumerate(said)]


def test_pattern_of_the_suite_or_of_each_case() -> None:
    assert hits({"kind": "regex", "pattern": r"^\d+$"}, *texts("42", "42a", "")) == [100, 0, 0]
    own = [
        (case(regex=r"\bcat\b"), "a cat"),
        (case(regex=["a", "z$"]), "a b"),
        (case(regex=["a", "b$"]), "a b"),
    ]
    assert hits("regex", *own) == [100, 0, 100]
    with pytest.raises(DataError, match=r"cases\.jsonl:1: expected\.regex '\(' is no regular expression"):
        hits("regex", (case(regex="("), "x"))
    with pytest.raises(DataError, match=r"case cases\.jsonl:7 has no expected\.regex, and regex needs it"):
        hits("regex", (case(7), "x"))


def test_texts_that_must_and_must_not_be_there() -> None:
    spelt = {"kind": "contains", "all": ["a"], "any": ["b", "c"], "none": ["d"]}
    assert hits(spelt, *texts("ab", "ac", "a", "bc", "abd", "AB")) == [100, 100, 0, 0, 0, 0]
    assert hits({**spelt, "ignore_case": True}, *texts("AB", "ABD", "STRASSE")) == [100, 0, 0]
    own = [
        (case(contains="x"), "xy"),
        (case(contains=["x", "y"]), "x"),
        (case(not_contains=["x"]), "y"),
        (case(contains="y", not_contains="x"), "xy"),
    ]
    assert hits("contains", *own) == [100, 0, 100, 0]
    with pytest.raises(DataError, match=r"expected\.contains is 5; give a text or a list of texts"):
        hits("contains", (case(contains=5), "5"))


SCHEMA = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"type": "integer", "minimum": 1}},
    "additionalProperties": False,
}


def test_json_is_one_whole_value() -> None:
    said = [
        '{"a": [1, null]}',
        "null",
        " 3\n",
        "{'a': 1}",
        '{"a": 1} ok',
        "",
        "NaN",
        "```json\n[1]\n```",
        "[" * 100000,
    ]
    assert hits("json", *texts(*said)) == [100, 100, 100, 0, 0, 0, 0, 0, 0]
    assert hits({"kind": "json", "fenced": True}, *texts("```json\n[1]\n```", "```\n1\n``` x", "2")) == [
        100,
        0,
        100,
    ]


def test_json_schema_of_a_file_or_of_each_case(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    said = ['{"n": 1}', '{"n": 0}', '{"n": 1.5}', '{"n": 1, "m": 2}', "[]", "no json"]
    wanted = [100, 0, 0, 0, 0, 0]
    spelt = {"kind": "json_schema", "file": "schema.json"}
    assert hits(spelt, *texts(*said), folder=tmp_path) == wanted
    assert hits("json_schema", *((case(json_schema=SCHEMA), text) for text in said)) == wanted
    before = resolved(spelt, tmp_path)
    (tmp_path / "schema.json").write_text(json.dumps({**SCHEMA, "required": []}))
    after = resolved(spelt, tmp_path)
    assert before.digest != after.digest
    assert before.signature([]) != after.signature([])


def test_schema_that_is_none_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite\.yaml: metrics: .*none\.json: no such JSON schema"):
        resolved({"kind": "json_schema", "file": "none.json"}, tmp_path)
    (tmp_path / "bad.json").write_text('{"type": "objekt"}')
    with pytest.raises(ConfigError, match=r"bad\.json: is no JSON schema \('objekt' is not valid"):
        resolved({"kind": "json_schema", "file": "bad.json"}, tmp_path)
    with pytest.raises(DataError, match=r"case cases\.jsonl:1: expected\.json_schema is no JSON schema"):
        hits("json_schema", (case(json_schema={"type": 5}), "{}"))
    elsewhere = {"$ref": "http://127.0.0.1:9/schema.json"}  # nothing is fetched
    with pytest.raises(DataError, match="put what it refers to into the schema's own"):
        hits("json_schema", (case(json_schema=elsewhere), "{}"))


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments))


def called(spelt: Any, wanted: Any, *found: ToolCall) -> float:
    asked = case(tool_calls=wanted)
    metric = resolved(spelt)
    answer = Answer(asked, (replace(completion(asked, ""), tool_calls=found),))
    return float(score([metric], [answer])[metric.name].value)


def test_tool_calls_match_by_name_and_canonical_arguments() -> None:
    wanted = [{"name": "add", "arguments": {"a": 1, "b": [2.0, True]}}]
    assert called("tool_calls", wanted, ToolCall("add", '{"b": [2,true] , "a":1.0}')) == 100
    for wrong in (
        call("add", a=1, b=[2, 1]),
        call("add", a="1", b=[2, True]),
        call("sub", a=1, b=[2, True]),
        ToolCall("add", "{broken"),
        ToolCall("add", "[1]"),
    ):
        assert called("tool_calls", wanted, wrong) == 0
    assert called("tool_calls", wanted) == 0
    names_only = {"kind": "tool_calls", "arguments": "ignored"}
    assert called(names_only, wanted, ToolCall("add", "{broken")) == 100
    openai = [{"type": "function", "function": {"name": "now", "arguments": "{}"}}]
    assert called("tool_calls", openai, ToolCall("now", "")) == 100


def test_tool_calls_come_in_any_order_unless_the_suite_says() -> None:
    wanted = [{"name": "a"}, {"name": "b"}]
    assert called("tool_calls", wanted, call("b"), call("a")) == 100
    assert called({"kind": "tool_calls", "order": "same"}, wanted, call("b"), call("a")) == 0
    assert called({"kind": "tool_calls", "order": "same"}, wanted, call("a"), call("b")) == 100
    assert called("tool_calls", wanted, call("a"), call("b"), call("b")) == 0
    assert called("tool_calls", [], call("a")) == 0
    assert called("tool_calls", []) == 100


def test_expected_calls_that_are_none_are_refused() -> None:
    for wanted in ("add", [{"arguments": {}}], [{"name": "a", "arguments": [1]}], [5], None):
        with pytest.raises(DataError, match=r"case cases\.jsonl:1: expected\.tool_calls"):
            called("tool_calls", wanted)


@given(st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=3), st.booleans())))
def test_arguments_are_equal_however_they_are_written(arguments: dict[str, Any]) -> None:
    backwards = dict(reversed(arguments.items()))
    one, other = json.dumps(arguments, indent=2), json.dumps(backwards, ensure_ascii=False)
    assert canonical_arguments(ToolCall("f", one)) == canonical_arguments(ToolCall("f", other)) is not None
    assert calls_match([ToolCall("f", one)], [ToolCall("f", other)], "same", "same")


def test_limits_hold_at_their_ends() -> None:
    def within(**limits: Any) -> list[float]:
        return hits({"kind": "limits", **limits}, *texts("", "one", "one two", "one two three"))

    assert within(min_words=1, max_words=2) == [0, 100, 100, 0]
    assert within(min_chars=3) == [0, 100, 100, 100]
    assert within(max_chars=7) == [100, 100, 100, 0]
    assert within(max_tokens=5) == [100] * 4  # `completion` counts 5 tokens and 0.1 s
    assert within(max_tokens=4) == [0] * 4
    assert within(max_latency_s=0.1) == [100] * 4
    assert within(max_latency_s=0.09) == [0] * 4
    cut = replace(completion(case(), "a"), finish_reason="length")
    metric = resolved({"kind": "limits", "ended": True})
    assert score([metric], [Answer(case(), (cut,))])["limits"].value == 0


def test_expected_asks_of_each_case_all_that_it_has() -> None:
    mixed = [
        (case(1, regex="^y"), "yes"),
        (case(2, contains="a", not_contains="b"), "ab"),
        (case(3, json_schema=SCHEMA), '{"n": 3}'),
        (case(4, tool_calls=[]), "no call"),
        (case(5, regex="^y", contains="z"), "yes"),
    ]
    assert hits("expected", *mixed) == [100, 0, 100, 100, 0]


def test_expectation_that_nothing_reads_is_refused() -> None:
    with pytest.raises(DataError, match=r"case cases\.jsonl:1: expected\.regexp is read by no metric"):
        hits("expected", (case(regexp="y", contains="y"), "yes"))
    with pytest.raises(DataError, match=r"has nothing in `expected`"):
        hits("expected", (case(), "yes"))
    assert hits({"kind": "expected", "other": ["level"]}, (case(level=3, regex="y"), "yes")) == [100]
