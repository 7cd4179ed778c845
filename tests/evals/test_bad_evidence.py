"""Evidence that is none, one kind a test, through the command line: the gate decides nothing on it, and says why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmops.data import find_snapshot
from llmops.records import Report
from llmops.registry.adapters import NewAdapter
from tests.evals.conftest import BETTER, Room, build_questions, number, right, write, write_adapter
from tests.evals.counterpart import Fault
from tests.evals.test_gate import answer, replaced
from tests.evidence import LINEAGE, NO_PROBES, activate, decide, engine_of
from tests.in_process import llmops
from tests.loop import Done


def check(room: Room, *checks: dict[str, object], **settings: object) -> Done:
    room.gate(*(checks or (BETTER,)), **settings)
    return llmops(room.workspace.root, "gate", "check", "gate.yaml")


def require_invalid(room: Room, message: str, *checks: dict[str, object], **settings: object) -> None:
    done = check(room, *checks, **settings)
    assert done.code == 4, done.out + done.err
    assert message in done.out
    assert done.out.splitlines()[-1].startswith("INVALID  docs: ")
    refused = llmops(room.workspace.root, "release", "promote", "docs")
    assert refused.code == 4
    assert "the gate said INVALID" in refused.err


def with_lines(room: Room, report: Report, *keep: int) -> None:
    """The report again, on completions of which only those lines are left (in this order)."""
    folder = room.registry.store.path("completions", report.completions)
    lines = (folder / "completions.jsonl").read_bytes().splitlines(keepends=True)
    chosen = b"".join(lines[i] for i in keep)
    replaced(
        room, report, completions=room.registry.store.put_files("completions", {"completions.jsonl": chosen})
    )


def test_missing_cases(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    with_lines(room, tuned, *range(99))
    require_invalid(room, "its completions do not answer the suite's cases one by one")


def test_duplicate_cases(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    with_lines(room, tuned, 0, 0, *range(2, 100))
    require_invalid(room, "its completions do not answer the suite's cases one by one")


def test_duplicate_cases_in_a_file_are_refused_before_anything_is_asked(room: Room) -> None:
    line = json.dumps({"prompt": "q", "expected": {"contains": "a"}, "slices": {"x": "1"}})
    again = json.dumps({"prompt": "q", "expected": {"contains": "a"}, "slices": {"x": "2"}})
    (room.workspace.root / "cases.jsonl").write_text(f"{line}\n{again}\n")
    room.suite(cases={"kind": "file", "path": "cases.jsonl"})
    counterpart = room.serve(lambda model, prompt, nth: "a")
    done = llmops(room.workspace.root, "eval", "suite.yaml", "--endpoint", counterpart.url)
    assert done.code == 2
    assert "cases.jsonl:2" in done.err
    assert counterpart.asked == []


def test_empty_completions(room: Room) -> None:
    room.run(room.serve(lambda model, prompt, nth: right(prompt) if model == room.base.model_name else " "))
    require_invalid(room, f"report of {room.adapter.model_name}: all 100 answers are empty")


def test_all_errored(room: Room) -> None:
    room.run(room.serve(lambda model, prompt, nth: Fault(status=400)))
    require_invalid(room, "100 of 100 cases errored (allowed: 0.0%)")


def test_zero_variance(room: Room) -> None:
    guard = {"metric": "rougeL", "margin": 2}
    room.suite(metrics=["rougeL"])
    room.plan(guard)
    room.run(room.serve(lambda model, prompt, nth: right(prompt)), room.workspace.root / "suite.yaml")
    done = check(room, guard)
    assert done.code == 3
    assert "[-2.95, +2.95]" in done.out, "100 equal answers leave room for 1 - 0.05^(1/100) of others"
    room.run(room.serve(lambda model, prompt, nth: "never right"), room.workspace.root / "suite.yaml")
    dead = check(room, guard)
    assert dead.code == 4
    assert "rougeL: all 100 values are equal: their error cannot be estimated" in dead.out


def test_a_few_cases_that_decide_alone_leave_it_open(room: Room) -> None:
    """A method that cannot hold its level does not decide: three cases of a hundred differ."""
    guard = {"metric": "rougeL", "margin": 2}
    room.suite(metrics=["rougeL"])
    room.plan(guard)

    def script(model: str, prompt: str, nth: int) -> str:
        return right(prompt) if number(prompt) > 20 or model == room.base.model_name else "wrong"

    room.run(room.serve(script), room.workspace.root / "suite.yaml")
    done = check(room, guard)
    assert done.code in (1, 3)
    room.run(
        room.serve(lambda m, p, n: right(p) if number(p) > 6 or m != room.base.model_name else "wrong"),
        room.workspace.root / "suite.yaml",
    )
    few = check(room, guard)
    assert few.code == 3
    assert "does not clear -2" in few.out


def test_fewer_cases_than_the_floor(room: Room) -> None:
    room.plan(BETTER, min_cases=150)
    answer(room, range(0), range(100))
    done = check(room, min_cases=150)
    assert done.code == 3
    assert "100 cases decide nothing; the gate asks for 150" in done.out


@pytest.mark.parametrize("part", ["engine", "prompt_contract"])
def test_report_from_another_engine_or_prompt_contract(room: Room, part: str) -> None:
    base, tuned = answer(room, range(40), range(70))
    value = replace(base.engine, dtype="bfloat16") if part == "engine" else "9" * 64
    replaced(room, tuned, **{part: value})
    message = "the reports differ in engine" if part == "engine" else "prompt contract is not the report's"
    require_invalid(room, message)


def test_champion_that_changed_since(room: Room) -> None:
    answer(room, range(40), range(70))
    assert check(room).code == 0
    other = room.new_adapter("docs", seed=4)
    decide(room.registry, other, engine_of(room.base))
    root = room.workspace.root
    assert llmops(root, "release", "promote", "docs").code == 0
    activate(room.registry, room.registry.ledger.events("release.requested")[-1])
    stale = room.registry.ledger.events("decision.made")[0]
    room.registry.ledger.append("decision.made", stale.body)
    refused = llmops(root, "release", "promote", "docs")
    assert refused.code == 4
    assert f"but the champion is now {other.adapter[:12]}" in refused.err


def test_contaminated_suite(room: Room) -> None:
    build_questions(room.workspace, room.registry, 300, salt="other")
    trained = find_snapshot(room.registry.store, room.registry.ledger, "questions").digest()
    build_questions(room.workspace, room.registry, 300)
    lineage = replace(LINEAGE, origin="trained", dataset=trained)
    folder = write_adapter(room.folder / "leaky", 5)
    room.registry.register(NewAdapter("leaky", folder, room.base, room.base.contract, NO_PROBES, lineage, {}))
    answer(room, range(40), range(100))
    require_invalid(room, "of 100 cases stand in the adapter's training data")


# ---------------------------------------------------------------- several suites in one decision


def two_suites(room: Room) -> dict[str, object]:
    """A second suite over other cases, and a gate's settings that name both."""
    rows = [{"prompt": f"other {i}", "completion": f"said {i}"} for i in range(60)]
    (room.workspace.root / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    room.suite()
    suite = {
        "name": "other", "cases": {"kind": "file", "path": "other.jsonl"}, "metrics": ["exact_match"],
        "decoding": {"temperature": 0, "max_tokens": 16},
    }  # fmt: skip
    write(room.workspace.root / "other.yaml", suite)
    return {
        "suites": {"task": "suite.yaml", "general": "other.yaml"},
        "guardrails": [{"suite": "general", "metric": "exact_match", "margin": 10}],
        "primary": BETTER,
    }


def test_run_declares_evaluates_every_suite_and_decides(room: Room) -> None:
    asked = two_suites(room)
    room.gate(**asked)

    def script(model: str, prompt: str, nth: int) -> str:
        if prompt.startswith("other"):
            return prompt.replace("other", "said") if model == room.base.model_name else "forgotten"
        return right(prompt) if model != room.base.model_name else "no idea"

    counterpart = room.serve(script)
    done = llmops(room.workspace.root, "gate", "run", "gate.yaml", "--endpoint", counterpart.url, "--json")
    decision = json.loads(done.out)
    assert (done.code, decision["verdict"]) == (1, "FAIL")
    assert [(c["suite"], c["verdict"], c["n_cases"]) for c in decision["checks"]] == [
        ("task", "PASS", 100),
        ("general", "FAIL", 60),
    ]
    assert len(decision["reports"]) == 4
    stored = [room.registry.store.get_record(Report, digest) for digest in decision["reports"]]
    assert [(r.suite, r.model) for r in stored] == [
        (suite, model)
        for suite in ("questions", "other")
        for model in (room.adapter.adapter, room.base.digest)
    ]
    assert len({r.session for r in stored}) == 1


def test_suite_that_was_never_evaluated_leaves_nothing_to_decide(room: Room) -> None:
    asked = two_suites(room)
    room.plan(**asked)
    answer(room, range(40), range(70))
    done = check(room, **asked)
    assert done.code == 4
    assert "on suite other; run `llmops eval` with that adapter" in done.err
