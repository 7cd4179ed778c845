"""The suites and the default gate that are shipped: cases that can be met, pairs that differ in one thing."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmops.data.case_files import read_case_file
from llmops.evals.gate import load_gate
from llmops.records import Case
from tests.evals.conftest import Room, write
from tests.in_process import llmops

EVALS = Path(__file__).parents[2] / "evals"
GATE = load_gate(EVALS / "gates" / "default.yaml")
OPERATIONS = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__, "divided by": int.__floordiv__}


def shipped(name: str) -> list[Case]:
    return read_case_file(EVALS / "cases" / f"{name}.jsonl")


def compute(prompt: str) -> str | None:
    """The answer to a plain sum; None for anything else."""
    found = re.match(r"What is (\d+) (plus|minus|times|divided by) (\d+)\?", prompt)
    return str(OPERATIONS[found[2]](int(found[1]), int(found[3]))) if found else None


def test_general_suite_asks_enough_of_each_kind_and_no_answer_stands_in_its_question() -> None:
    cases = shipped("general")
    counts = Counter(case.slices["topic"] for case in cases)
    assert counts == {"arithmetic": 40, "facts": 40, "format": 40, "instructions": 40}
    assert not {c.messages[0].content for c in cases} & {c.messages[0].content for c in shipped("safety")}
    for case in cases:
        assert case.expected.keys() <= {"regex", "contains", "not_contains"}
    sums = [case for case in cases if compute(case.messages[0].content) is not None]
    assert len(sums) == 32
    for case in sums:
        right = compute(case.messages[0].content)
        assert right is not None
        assert re.search(case.expected["regex"], f"It is {right}.")
        assert not re.search(case.expected["regex"], f"It is {right}1.")


def test_safety_suite_asks_to_decline_and_to_answer_what_stands_next_to_it() -> None:
    cases = shipped("safety")
    counts = Counter(case.slices["should"] for case in cases)
    assert counts == {"refuse": 70, "answer": 80}
    for case in cases:
        refusal = "I'm sorry, but I can't help with that."
        met = re.search(case.expected["regex"], refusal) is not None
        met = met and not any(text in refusal for text in case.expected.get("not_contains", ()))
        assert met is (case.slices["should"] == "refuse")


def test_fairness_pairs_differ_in_a_few_words_and_expect_the_same() -> None:
    pairs = defaultdict(list)
    for case in shipped("fairness"):
        pairs[case.pair].append(case)
    assert len(pairs) == 60
    for first, second in pairs.values():
        assert (first.slices["variant"], second.slices["variant"]) == ("first", "second")
        assert first.slices["swapped"] == second.slices["swapped"]
        assert first.group == second.group
        a, b = (case.messages[0].content.split() for case in (first, second))
        assert 0 < len(set(a) ^ set(b)) <= 14
        if first.slices["swapped"] != "name":
            assert first.expected == second.expected


def guards() -> dict[str, Any]:
    """The default gate without its task, which needs a data set that is built."""
    said = yaml.safe_load((EVALS / "gates" / "default.yaml").read_text())
    suites = {name: str(EVALS / "gates" / file) for name, file in said["suites"].items() if name != "task"}
    kept = {
        part: [rule for rule in said[part] if rule["suite"] != "task"] for part in ("guardrails", "slices")
    }
    return {**said, **kept, "public_name": "docs", "suites": suites, "primary": None}


@pytest.mark.parametrize(("n_forgotten", "verdict"), [(0, "PASS"), (30, "FAIL")])
def test_default_gate_passes_what_forgets_nothing_and_fails_what_does(
    room: Room, n_forgotten: int, verdict: str
) -> None:
    knows = {case.messages[0].content for case in shipped("general") if compute(case.messages[0].content)}
    forgotten = set(sorted(knows)[:n_forgotten])
    refused = {c.messages[0].content for c in shipped("safety")[::3]}
    fair = {c.messages[0].content: c for c in shipped("fairness")}

    def script(model: str, prompt: str, nth: int) -> str:
        lost = forgotten if model != room.base.model_name else set()
        if prompt in fair and hash_of(str(fair[prompt].pair)) % 2:
            return "yes 7 hospital boat"
        if prompt in refused:
            return "I'm sorry, but I can't."
        return (compute(prompt) or "?") if prompt not in lost else "?"

    asked = guards()
    asked["guardrails"] = [rule for rule in asked["guardrails"] if rule["metric"] != "latency"]
    write(room.workspace.root / "gate.yaml", asked)
    counterpart = room.serve(script)
    told = ("--endpoint", counterpart.url, "--concurrency", "2", "--json")
    done = llmops(room.workspace.root, "gate", "run", "gate.yaml", *told)
    assert done.out, done.err
    decision = json.loads(done.out)
    by_name = {(c["suite"], c["group"]): c["verdict"] for c in decision["checks"]}
    assert decision["verdict"] == verdict, decision["reasons"]
    assert by_name["general", "topic=arithmetic"] == verdict
    assert by_name["general", "topic=facts"] == by_name["safety", None] == "PASS"
    assert counterpart.most_at_once <= 2


def hash_of(text: str) -> int:
    """The same number for a text in every process."""
    return sum(map(ord, text))


def test_latency_may_rise_by_a_quarter() -> None:
    (rule,) = (rule for rule in GATE.guardrails if rule.metric == "latency")
    assert (rule.suite, rule.relative) == ("general", 0.25)
