"""Whole sessions by the command line: several suites at once, answers of earlier sessions, scoring again."""

from __future__ import annotations

import json
import multiprocessing
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmops.engines.decoding import Decoding
from llmops.engines.endpoint import Patience, System
from llmops.errors import CouldNotRun
from llmops.evals.cache import AnswerCache, Setting
from llmops.evals.pace import FIRST, Climb
from llmops.records import Case, Message, Report
from llmops.schema import load_record
from tests.evals.conftest import Room, gate_config, right, write
from tests.evals.counterpart import Counterpart, Fault
from tests.evals.scoring import completion
from tests.in_process import llmops
from tests.loop import Done

N = 20


def file_suite(room: Room, name: str, word: str, n: int = N, **settings: Any) -> Path:
    """A suite of `n` prompts that begin with a word."""
    rows = [{"prompt": f"{word} question {i}", "completion": f"{word} answer {i}"} for i in range(n)]
    (room.workspace.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": name,
        "cases": {"kind": "file", "path": f"{name}.jsonl"},
        "metrics": ["exact_match"],
        "decoding": {"temperature": 0, "max_tokens": 16},
        **settings,
    }
    return write(room.workspace.root / f"{name}.yaml", config)


def run(room: Room, counterpart: Counterpart, *arguments: str) -> Done:
    return llmops(room.workspace.root, "eval", *arguments, "--endpoint", counterpart.url)


def reports_of(done: Done) -> list[Report]:
    return [load_record(Report, data) for data in json.loads(done.out)]


def answering(room: Room) -> Counterpart:
    return room.serve(lambda model, prompt, nth: right(prompt))


def test_several_suites_are_one_session_with_a_report_for_each_suite_and_system(room: Room) -> None:
    counterpart = answering(room)
    file_suite(room, "short", "s", n=5)
    file_suite(room, "long", "l", n=20, metrics=["rougeL", "exact_match"])
    done = run(room, counterpart, "short.yaml", "long.yaml", "--concurrency", "1")
    assert done.code == 0, done.err
    events = room.registry.ledger.events("report.stored")
    systems = [room.base.digest, room.adapter.adapter]
    assert [(e.body["suite"], e.body["model"]) for e in events] == [
        (suite, system) for suite in ("short", "long") for system in systems
    ]
    (session,) = {str(e.body["session"]) for e in events}
    folder = room.workspace.runs / session
    kept = {path.name: len(path.read_bytes().splitlines()) for path in folder.glob("*completions.jsonl")}
    assert kept == {"short.completions.jsonl": 10, "long.completions.jsonl": 40}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert Counter((m["suite"], m["metric"]) for m in metrics) == {
        ("short", "exact_match"): 2, ("long", "exact_match"): 2, ("long", "rougeL"): 2
    }  # fmt: skip
    words = "".join(prompt[0] for _, prompt in counterpart.asked[::2])
    assert all(part.count("s") == 1 for part in re.findall(".{5}", words)), words
    assert done.out.count(f"session  {session}: suite ") == 2
    assert done.out.count("page ") == 1


def test_session_of_several_suites_is_finished_by_the_same_suites(room: Room) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    file_suite(room, "two", "b")
    run(room, counterpart, "one.yaml", "two.yaml")
    (folder,) = room.workspace.runs.iterdir()
    path = folder / "two.completions.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    counterpart.asked.clear()
    refused = run(room, counterpart, "one.yaml", "--resume", folder.name)
    assert refused.code == 2
    assert "was begun on one, two; name the same suites" in refused.err
    assert run(room, counterpart, "two.yaml", "one.yaml", "--resume", folder.name, "--no-cache").code == 0
    assert len(counterpart.asked) == 3


def test_two_suites_of_one_name_are_refused(room: Room) -> None:
    path = file_suite(room, "one", "a")
    (room.workspace.root / "copy.yaml").write_bytes(path.read_bytes())
    done = run(room, answering(room), "one.yaml", "copy.yaml")
    assert done.code == 2
    assert "two suites are called one" in done.err


def test_answers_come_from_the_cache_and_are_counted_as_such(room: Room) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    first = reports_of(run(room, counterpart, "one.yaml", "--json"))
    assert [r.n_cached for r in first] == [0, 0]
    counterpart.asked.clear()
    again = run(room, counterpart, "one.yaml")
    assert counterpart.asked == []
    assert (
        f"cached   {2 * N} of {2 * N} answers are from earlier sessions; --no-cache asks again" in again.out
    )
    told = [line.strip() for line in again.err.splitlines() if "answers" in line]
    assert (
        told[0] == f"eval {2 * N}/{2 * N}  answers"
    )  # the time left is not reckoned from what nobody was asked
    event = room.registry.ledger.events("report.stored")[-1]
    report = room.registry.store.get_record(Report, str(event.body["report"]))
    assert (report.n_cached, report.invalid) == (N, ())
    assert report.metrics == first[1].metrics
    kept = (room.workspace.runs / report.session / "completions.jsonl").read_text().splitlines()
    assert all(json.loads(line)["cached"] for line in kept)
    asked_again = reports_of(run(room, counterpart, "one.yaml", "--no-cache", "--json"))
    assert (len(counterpart.asked), [r.n_cached for r in asked_again]) == (2 * N, [0, 0])


def test_only_what_a_new_adapter_or_suite_adds_is_asked(room: Room) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    run(room, counterpart, "one.yaml")
    other = room.new_adapter("other", 5)
    counterpart.adapters[other.adapter] = other
    counterpart.asked.clear()
    assert run(room, counterpart, "one.yaml", "--adapter", other.adapter).code == 0
    assert {model for model, _ in counterpart.asked} == {other.model_name}
    counterpart.asked.clear()
    file_suite(room, "one", "a", n=N + 3)
    run(room, counterpart, "one.yaml", "--adapter", other.adapter)
    assert len(counterpart.asked) == 2 * 3


@pytest.mark.parametrize(
    "decoding",
    [{"temperature": 0, "max_tokens": 17}, {"temperature": 0, "max_tokens": 16, "seed": 1}],
    ids=["length", "seed"],
)
def test_other_decoding_is_asked_again(room: Room, decoding: dict[str, Any]) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    run(room, counterpart, "one.yaml")
    counterpart.asked.clear()
    file_suite(room, "one", "a", decoding=decoding)
    run(room, counterpart, "one.yaml")
    assert len(counterpart.asked) == 2 * N


def test_key_changes_with_everything_that_could_change_an_answer() -> None:
    case = Case((Message("user", "q"),), ("a",), "g", "f:1")
    cold = Decoding(temperature=0, max_tokens=4)
    settings = [
        Setting(System("x@1", "m", "c"), "e", cold, False),
        Setting(System("x@1", "n", "c"), "e", cold, False),
        Setting(System("x@1", "m", "d"), "e", cold, False),
        Setting(System("x@1", "m", "c"), "f", cold, False),
        Setting(System("x@1", "m", "c"), "e", Decoding(temperature=0, max_tokens=5), False),
        Setting(System("x@1", "m", "c"), "e", cold, True),
    ]
    other = Case((Message("user", "q"),), ("b",), "g", "f:1")
    keys = [s.key(case, 0) for s in settings] + [settings[0].key(case, 1), settings[0].key(other, 0)]
    assert len(set(keys)) == len(keys)
    named = Setting(System("y@1", "m", "c"), "e", cold, False)
    assert named.key(case, 0) == keys[0]


def test_answers_by_a_wrong_model_or_none_never_enter_the_cache(room: Room) -> None:
    wrong = True

    def script(model: str, prompt: str, nth: int) -> str | Fault:
        if wrong and model != room.base.model_name:
            return Fault(right(prompt), headers={"x-llmops-model": room.base.digest})
        return Fault(status=400) if wrong else right(prompt)

    counterpart = room.serve(script)
    file_suite(room, "one", "a")
    assert run(room, counterpart, "one.yaml").code == 4
    wrong = False
    counterpart.asked.clear()
    assert run(room, counterpart, "one.yaml").code == 0
    assert len(counterpart.asked) == 2 * N


def test_damaged_answer_is_asked_again(room: Room) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    run(room, counterpart, "one.yaml")
    with sqlite3.connect(room.workspace.state / "answers.db") as db:
        db.execute(
            "UPDATE answers SET line = replace(line, 'answer', 'ANSWER') WHERE key = (SELECT min(key) FROM answers)"
        )
    counterpart.asked.clear()
    done = run(room, counterpart, "one.yaml", "--json")
    assert [r.metrics["exact_match"].value for r in reports_of(done)] == [100.0, 100.0]
    assert len(counterpart.asked) == 1


def _fill(path: Path, first: int) -> None:
    case = Case((Message("user", "q"),), ("a",), "g", "f:1")
    for i in range(first, first + 100):
        AnswerCache(path).put([(f"{i}", completion(case, f"text {i}"))])


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_fill, args=(path, first)) for first in (0, 50)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    found = AnswerCache(path).get([f"{i}" for i in range(200)])
    assert {key: answer.text for key, answer in found.items()} == {f"{i}": f"text {i}" for i in range(150)}
    assert all(answer.cached for answer in found.values())


def test_scoring_again_takes_the_suites_new_metrics_and_asks_nothing(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt) if prompt.endswith("3") else "a answer")
    file_suite(room, "one", "a")
    (before, _) = reports_of(run(room, counterpart, "one.yaml", "--json"))
    file_suite(room, "one", "a", metrics=["rougeL", {"kind": "regex", "pattern": "3$"}])
    counterpart.asked.clear()
    done = llmops(room.workspace.root, "eval", "rescore", before.session, "--json")
    assert done.code == 0, done.err
    reports = reports_of(done)
    assert counterpart.asked == []
    assert [(r.session, r.system, sorted(r.metrics)) for r in reports] == [
        (before.session, name, ["regex", "rougeL"])
        for name in (room.base.model_name, room.adapter.model_name)
    ]
    assert reports[0].metrics["regex"].value == 10.0  # questions 3 and 13
    events = room.registry.ledger.events("report.stored")
    assert [e.body["report"] for e in events[-2:]] == [r.digest() for r in reports]
    whole = reports_of(run(room, counterpart, "one.yaml", "--no-cache", "--json"))
    assert [r.metrics for r in whole] == [r.metrics for r in reports]


@pytest.mark.parametrize(
    ("settings", "n", "what"),
    [({"decoding": {"temperature": 0, "max_tokens": 17}}, N, "decoding"), ({}, N + 1, "cases")],
)
def test_scoring_again_is_refused_when_other_answers_would_be_needed(
    room: Room, settings: dict[str, Any], n: int, what: str
) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    session = reports_of(run(room, counterpart, "one.yaml", "--json"))[0].session
    file_suite(room, "one", "a", n=n, **settings)
    done = llmops(room.workspace.root, "eval", "rescore", session)
    assert done.code == 2
    assert f"suite one: its {what} changed since session {session}" in done.err


def test_session_that_never_finished_is_not_scored_again(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: Fault(cut=True))
    file_suite(room, "one", "a")
    suite = room.workspace.root / "one.yaml"
    with pytest.raises(CouldNotRun):
        room.run(counterpart, suite, patience=Patience(answer_s=5, retry_s=0.1))
    (folder,) = room.workspace.runs.iterdir()
    done = llmops(room.workspace.root, "eval", "rescore", folder.name)
    assert done.code == 2
    assert (
        f"has no reports to score again; finish it with `llmops eval` and --resume {folder.name}" in done.err
    )


def test_invalid_report_stays_invalid_when_scored_again(room: Room) -> None:
    counterpart = answering(room)
    changed = {**counterpart.engine.to_pairs(), "dtype": "bfloat16"}
    counterpart.engine_after = type(counterpart.engine)(**changed)
    file_suite(room, "one", "a")
    session = reports_of(run(room, counterpart, "one.yaml", "--json"))[0].session
    done = llmops(room.workspace.root, "eval", "rescore", session, "--json")
    assert done.code == 4
    assert {r.invalid for r in reports_of(done)} == {
        ("the engine changed during the session: dtype float32 -> bfloat16",)
    }


def decided(room: Room, *gates: str) -> Done:
    return llmops(room.workspace.root, "gate", "check", *gates)


def gate_file(room: Room, name: str, margin: float) -> str:
    """A gate on suite `one`, not declared yet."""
    guardrail = {"metric": "exact_match", "margin": margin}
    write(room.workspace.root / name, gate_config(guardrail, suite="one.yaml", min_cases=5))
    return name


def test_no_gate_decides_on_cached_answers_that_were_known_before_it(room: Room) -> None:
    counterpart = answering(room)
    file_suite(room, "one", "a")
    first, later = gate_file(room, "first.yaml", 30), gate_file(room, "later.yaml", 40)
    run(room, counterpart, "one.yaml", "--gate", first)
    run(room, counterpart, "one.yaml", "--gate", first)
    assert decided(room, first).code == 0
    oldest = room.registry.ledger.events("run.started")[0].body["run"]
    run(room, counterpart, "one.yaml", "--gate", later)
    refused = decided(room, later)
    assert refused.code == 4
    assert f"are of session {oldest}, when gate gate@" in refused.out
    run(room, counterpart, "one.yaml", "--gate", later, "--no-cache")
    assert decided(room, later).code == 0


def test_no_gate_decides_on_metrics_that_were_chosen_after_the_answers(room: Room) -> None:
    file_suite(room, "one", "a")
    gate = gate_file(room, "gate.yaml", 30)
    session = reports_of(run(room, answering(room), "one.yaml", "--json", "--gate", gate))[0].session
    file_suite(room, "one", "a", metrics=["exact_match", "rougeL"])
    assert llmops(room.workspace.root, "eval", "rescore", session).code == 0
    done = decided(room, gate)
    assert done.code == 4
    assert "was scored again by another state of it; evaluate again" in done.out


@pytest.mark.parametrize("said", ["0", "1025", "fast"])
def test_concurrency_that_is_no_number_of_requests_is_refused(room: Room, said: str) -> None:
    file_suite(room, "one", "a")
    done = run(room, answering(room), "one.yaml", "--concurrency", said)
    assert done.code == 2
    assert f"--concurrency: is {said!r}; use auto, or 1 to 1024" in done.err


def test_concurrency_falls_where_the_endpoint_refuses_questions(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    class Seen(Climb):
        def window(self, rate: float, overloaded: bool, slow: bool) -> None:
            super().window(rate, overloaded, slow)
            limits.append(self.limit)

    def script(model: str, prompt: str, nth: int) -> str | Fault:
        busy = nth == 1 and prompt.endswith(" 0")
        return Fault(status=429, headers={"retry-after": "0.01"}) if busy else right(prompt)

    monkeypatch.setattr("llmops.evals.run.Climb", Seen)
    reports = room.run(room.serve(script), file_suite(room, "one", "a"), concurrency="auto")
    assert [r.n_errored for r in reports] == [0, 0]
    assert FIRST // 2 in limits
