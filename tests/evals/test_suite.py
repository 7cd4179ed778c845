"""Suites: explicit, digested, and sampled stably over groups."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmops.data import cases_of, find_snapshot, load_pool, sample
from llmops.errors import BadRequest, ConfigError, DataError
from llmops.evals.gate import check_gate
from llmops.evals.suite import SuiteConfig, load_suite
from llmops.records import Case, Message, Row
from llmops.settings import load_yaml
from tests.evals.conftest import Room, build_questions, right, write
from tests.in_process import llmops

SUITES = Path(__file__).parents[2] / "evals" / "suites"


def case(i: int, group: str) -> Case:
    return Case((Message("user", f"q{i}"),), (f"a{i}",), group, f"f:{i}")


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_suite_file_loads_and_opens_with_the_command_that_runs_it(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# llmops eval evals/suites/{path.name}"
    assert load_yaml(path, SuiteConfig).name == path.stem


groups = st.lists(st.sampled_from("abcde"), min_size=1, max_size=40)


@given(groups, st.integers(1, 40), st.integers(0, 5), st.randoms())
def test_sample_depends_on_content_and_seed_alone(names: list[str], n: int, seed: int, random: Any) -> None:
    cases = [case(i, group) for i, group in enumerate(names)]
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert sample(cases, n, seed) == sample(shuffled, n, seed)
    assert sample(cases, n, seed) == sample(cases, None, seed)[:n]
    assert sorted(c.digest for c in sample(cases, None, seed)) == sorted(c.digest for c in cases)


@given(groups, st.integers(1, 40))
def test_no_group_gives_a_second_case_before_every_group_gave_one(names: list[str], n: int) -> None:
    cases = [case(i, group) for i, group in enumerate(names)]
    taken, sizes = Counter(c.group for c in sample(cases, n, 0)), Counter(names)
    most = max(taken.values())
    assert all(taken[group] >= min(most - 1, size) for group, size in sizes.items())


def test_another_seed_takes_other_cases() -> None:
    cases = [case(i, f"g{i % 10}") for i in range(100)]
    assert {c.digest for c in sample(cases, 20, 0)} != {c.digest for c in sample(cases, 20, 1)}


def test_answers_to_one_prompt_become_references_of_one_case() -> None:
    rows = [
        Row((Message("user", q), Message("assistant", a)), "g", f"f:{i}")
        for i, (q, a) in enumerate(["px", "qx", "py"])
    ]
    first, second = cases_of(rows)
    assert (first.references, first.source, second.references) == (("x", "y"), "f:0", ("x",))


def test_cases_come_from_the_gate_pool_alone(room: Room) -> None:
    suite = load_suite(room.suite(), room.registry)
    snapshot = find_snapshot(room.registry.store, room.registry.ledger, "questions")
    pools = {
        name: {r.messages[:-1] for r in load_pool(room.registry.store, snapshot, name)}
        for name in snapshot.n_rows
    }
    asked = {c.messages for c in suite.cases}
    assert asked <= pools["gate"]
    assert not asked & (pools["train"] | pools["rate"])
    with pytest.raises(ConfigError, match=r"cases\.pool: must be one of gate, rate"):
        load_suite(room.suite(cases={"kind": "dataset", "name": "questions", "pool": "train"}), room.registry)


def test_digest_covers_settings_and_resolved_cases(room: Room) -> None:
    before = load_suite(room.suite(), room.registry)
    assert load_suite(room.suite(), room.registry).digest == before.digest
    warmer = load_suite(room.suite(decoding={"temperature": 0.1, "max_tokens": 16}), room.registry)
    assert warmer.digest != before.digest
    assert warmer.cases_digest == before.cases_digest
    build_questions(room.workspace, room.registry, 400)
    assert load_suite(room.suite(), room.registry).cases_digest != before.cases_digest


def test_rows_fall_into_slices_by_group_and_by_thirds_of_their_length(room: Room) -> None:
    """Questions of one digit are the shortest; a gate on such a slice counts exactly its cases."""
    cases = {"kind": "dataset", "name": "questions", "n_max": 60, "slice_by": ["length", "group"]}
    suite = room.suite(cases=cases)
    found = load_suite(suite, room.registry).cases
    lengths = sorted(len(c.messages[0].content) for c in found)
    for case in found:
        n = len(case.messages[0].content)
        expected = "short" if n < lengths[20] else "middle" if n < lengths[40] else "long"
        assert case.slices == {"length": expected, "group": case.group}
    rule = {
        "metric": "exact_match",
        "slice": "length",
        "groups": ["long"],
        "margin": 60,
    }
    gate = room.gate({"metric": "exact_match", "kind": "superior", "by": 0}, slices=[rule])
    url = room.serve(lambda _model, prompt, _nth: right(prompt)).url
    done = llmops(room.workspace.root, "eval", str(suite), "--endpoint", url, "--gate", str(gate))
    assert done.code == 0, done.err
    sliced = [check for check in check_gate(gate, room.workspace).checks if check.role == "slice"]
    assert [c.group for c in sliced] == ["length=long"]
    assert sliced[0].n_cases == sum(c.slices["length"] == "long" for c in found)


def test_cases_of_a_file_are_read_in_order_and_a_bad_line_is_named(room: Room) -> None:
    path = room.workspace.root / "cases.jsonl"
    lines = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = room.suite(cases={"kind": "file", "path": "cases.jsonl"})
    assert [c.references for c in load_suite(suite, room.registry).cases] == [("a0",), ("a1",), ("a2",)]
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(DataError, match=r"cases\.jsonl:4: malformed JSON"):
        load_suite(suite, room.registry)
    path.write_text('{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(DataError, match="1 cases; nothing can be estimated"):
        load_suite(suite, room.registry)
    path.unlink()
    with pytest.raises(DataError, match=r"cases\.jsonl: no such file"):
        load_suite(suite, room.registry)


def case_file(room: Room, *lines: object, **settings: Any) -> Path:
    """A suite over a file with these lines."""
    (room.workspace.root / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return room.suite(cases={"kind": "file", "path": "cases.jsonl"}, **settings)


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def test_line_of_a_case_file_says_turns_references_tools_expectations_and_labels(room: Room) -> None:
    suite = case_file(
        room,
        {"prompt": "hi", "references": ["hello", "hey"], "follow_ups": ["and now?"], "group": "g", "pair": "p"},
        {"messages": [{"role": "user", "content": "rain?"}], "tools": [WEATHER], "slices": {"topic": "sky"},
         "expected": {"tool_calls": []}},
        {"prompt": "hi", "completion": "hallo"},
        {"prompt": "hi", "completion": "hoi", "references": ["hallo"]},
        metrics=[{"kind": "regex", "pattern": "h"}],
    )  # fmt: skip
    talk, tool, plain = load_suite(suite, room.registry).cases
    assert (talk.references, talk.follow_ups, talk.group, talk.pair) == (
        ("hello", "hey"),
        ("and now?",),
        "g",
        "p",
    )
    assert (tool.references, tool.slices, tool.expected) == ((), {"topic": "sky"}, {"tool_calls": []})
    assert json.loads(tool.tools or "") == [{"type": "function", "function": WEATHER}]
    assert (plain.references, plain.source) == (("hallo", "hoi"), "cases.jsonl:3")
    assert len({talk.digest, tool.digest, plain.digest}) == 3


def test_answer_that_calls_tools_becomes_what_is_expected(room: Room) -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    ]
    asked = {"role": "user", "content": "rain in Oslo?"}
    row = {
        "messages": [asked, {"role": "assistant", "content": None, "tool_calls": calls}],
        "tools": [WEATHER],
    }
    suite = case_file(room, row, {"prompt": "q"}, metrics=[{"kind": "regex", "pattern": "h"}])
    case = load_suite(suite, room.registry).cases[0]
    assert case.expected == {"tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]}
    assert (case.references, [m.content for m in case.messages]) == ((), ["rain in Oslo?"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "q", "follow_up": ["x"]}, "follow_up is not a field of cases; did you mean follow_ups"),
        ({"prompt": "q", "follow_ups": "x"}, "follow_ups is 'x'; give a list of texts"),
        ({"prompt": "q", "follow_ups": [" "]}, r"follow_ups\[0\] is ' '; give a text that is not empty"),
        ({"prompt": "q", "references": [1]}, r"references\[0\] is 1; give a text"),
        ({"prompt": "q", "expected": []}, r"expected is \[\]; give an object"),
        ({"prompt": "q", "slices": {"a": 1}}, r"slices\.a is 1; give a text"),
        ({"prompt": "q", "pair": ""}, "pair is ''; give a text"),
        ({"prompt": "q", "group": 3}, "bad group: 3 is not a name"),
        ({"prompt": "q", "tools": [{}]}, r"bad tools: tools\[0\] has no function name"),
        ({"prompt": "q", "tools": [WEATHER], "follow_ups": ["x"]}, "has follow_ups and tools"),
        ({"prompt": ""}, r"empty turn: messages\[0\]"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "no conversation: give a prompt"),
        ({"text": "q"}, "unknown format"),
        ([1], "not an object: list"),
    ],
)  # fmt: skip
def test_bad_line_of_a_case_file_is_named_with_what_is_wrong(room: Room, line: object, message: str) -> None:
    suite = case_file(room, {"prompt": "p", "completion": "a"}, line)
    with pytest.raises(DataError, match=rf"cases\.jsonl:2: {message}.*; correct the line"):
        load_suite(suite, room.registry)


def test_one_case_under_two_labels_is_refused_with_both_lines(room: Room) -> None:
    lines = [{"prompt": "q", "completion": "a", "slices": {"n": n}} for n in "xy"]
    with pytest.raises(DataError, match=r"cases\.jsonl:2: asks and expects what cases\.jsonl:1 does"):
        load_suite(case_file(room, *lines), room.registry)


def test_metric_that_needs_references_is_refused_before_anything_is_asked(room: Room) -> None:
    suite = case_file(room, {"prompt": "p", "completion": "a"}, {"prompt": "q"})
    with pytest.raises(DataError, match=r"cases\.jsonl:2: has no reference, and exact_match needs one"):
        load_suite(suite, room.registry)


def test_dataset_that_was_never_built_is_a_bad_request(room: Room) -> None:
    with pytest.raises(BadRequest, match="llmops data build"):
        load_suite(room.suite(cases={"kind": "dataset", "name": "other"}), room.registry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["rougel"]}, r"rougel is not a metric \(found \['rougel'\]\); did you mean rougeL"),
        ({"metrics": ["bleu", "bleu"]}, "metric bleu is named twice"),
        ({"metrics": []}, "metrics: "),
        ({"decoding": {"max_tokens": 4}}, "decoding.temperature is missing"),
        ({"decoding": {"temperature": 0, "max_tokens": 4, "top_k": 3}}, "decoding.top_k is not a setting"),
    ],
)
def test_suite_that_does_not_say_what_it_must_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = yaml.safe_load((SUITES / "docstrings.yaml").read_text())
    with pytest.raises(ConfigError, match=message):
        load_yaml(write(tmp_path / "suite.yaml", {**config, **change}), SuiteConfig)
