"""Gates are declared before the question: on the command line, in the ledger, and in what a changed file comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evals.conftest import BETTER, NO_WORSE, Room, gate_config, right, write
from tests.in_process import llmops


def evaluate(room: Room, *more: str) -> None:
    """`llmops eval` in which the candidate is right throughout and the base never."""
    counterpart = room.serve(
        lambda model, prompt, nth: "no" if model == room.base.model_name else right(prompt)
    )
    room.suite()
    done = llmops(room.workspace.root, "eval", "suite.yaml", "--endpoint", counterpart.url, *more)
    assert done.code == 0, done.err


@pytest.fixture
def gates(room: Room) -> Path:
    """The folder whose gates are always declared."""
    folder = room.workspace.root / "evals" / "gates"
    folder.mkdir(parents=True)
    return folder


def test_eval_declares_the_folders_gates_and_the_named_before_it_begins(room: Room, gates: Path) -> None:
    write(gates / "one.yaml", gate_config(BETTER, name="one", suite="../../suite.yaml"))
    (gates / "broken.yaml").write_text("nonsense: 1\n")
    room.gate(NO_WORSE, name="two")
    evaluate(room, "--gate", "gate.yaml")
    events = room.registry.ledger.events()
    kinds = [e.kind for e in events]
    declared = [e for e in events if e.kind == "gate.declared"]
    assert {e.body["gate"] for e in declared} == {"one", "two"}
    assert max(e.seq for e in declared) < kinds.index("run.started") + 1
    done = llmops(room.workspace.root, "gate", "check", "gate.yaml", "--json")
    decision = json.loads(done.out)
    (two,) = (e for e in declared if e.body["gate"] == "two")
    assert (decision["verdict"], decision["gate_digest"], decision["gate_declared"]) == (
        "PASS",
        two.body["digest"],
        two.seq,
    )
    evaluate(room, "--gate", "gate.yaml")
    assert len(room.registry.ledger.events("gate.declared")) == 2


def test_gate_that_was_changed_after_the_run_is_invalid_until_evaluated_again(room: Room) -> None:
    room.gate(NO_WORSE)
    evaluate(room, "--gate", "gate.yaml")
    room.gate({**NO_WORSE, "margin": 50})
    done = llmops(room.workspace.root, "gate", "check", "gate.yaml")
    assert done.code == 4
    assert "was changed after the run" in done.out
    assert "evaluate again" in done.out
    assert llmops(room.workspace.root, "gate", "declare", "gate.yaml").code == 0
    assert llmops(room.workspace.root, "gate", "check", "gate.yaml").code == 4
    evaluate(room)
    cached = llmops(room.workspace.root, "gate", "check", "gate.yaml")
    assert cached.code == 4
    assert "evaluate with --no-cache" in cached.out
    evaluate(room, "--no-cache")
    assert llmops(room.workspace.root, "gate", "check", "gate.yaml").code == 0
    room.gate(NO_WORSE)
    assert llmops(room.workspace.root, "gate", "check", "gate.yaml").code == 0


def test_gate_that_was_written_after_the_run_is_invalid(room: Room) -> None:
    evaluate(room)
    room.gate(NO_WORSE, name="late")
    done = llmops(room.workspace.root, "gate", "check", "gate.yaml")
    assert done.code == 4
    assert "gate late@" in done.out
    assert "was not declared before the run" in done.out


def test_declare_says_what_it_declared_and_refuses_what_is_no_gate(room: Room, gates: Path) -> None:
    write(gates / "one.yaml", gate_config(BETTER, name="one", suite="../../suite.yaml"))
    done = llmops(room.workspace.root, "gate", "declare")
    (event,) = room.registry.ledger.events("gate.declared")
    assert done.code == 0
    assert ["one", event.body["digest"][:12], "docs"] in [line.split() for line in done.out.splitlines()]
    write(room.workspace.root / "bad.yaml", {"name": "x"})
    assert llmops(room.workspace.root, "gate", "declare", "bad.yaml").code == 2


def test_resumed_session_began_when_it_was_first_begun(room: Room) -> None:
    room.gate(NO_WORSE)
    evaluate(room, "--gate", "gate.yaml")
    (session,) = (e.body["run"] for e in room.registry.ledger.events("run.started"))
    room.gate({**NO_WORSE, "margin": 50})
    evaluate(room, "--gate", "gate.yaml", "--resume", session)
    done = llmops(room.workspace.root, "gate", "check", "gate.yaml")
    assert done.code == 4
    assert "was changed after the run" in done.out


def test_explain_says_in_one_paragraph_what_was_found_with_the_numbers(room: Room) -> None:
    room.gate(BETTER, approvals=2)
    evaluate(room, "--gate", "gate.yaml")
    root = room.workspace.root
    decision = json.loads(llmops(root, "gate", "check", "gate.yaml", "--json").out)
    (check,) = decision["checks"]
    said = llmops(root, "gate", "explain").out
    assert said.count("\n") == 1
    for part in (
        f"PASS: gate gate compared {room.adapter.model_name} with the base model for the name docs",
        "its one check holds",
        "went from 0.0 to 100.0",
        f"90 % interval {check['low']:.1f} to {check['high']:.1f}",
        "over 100 cases: PASS",
        "0 of 2 approvals are given",
        f"sha256 {decision['gate_digest'][:12]}",
        f"event {decision['gate_declared']}",
        "wrong for at most 5 % of samples",
    ):
        assert part in said


def test_baseline_may_be_the_base_or_a_named_adapter(room: Room) -> None:
    other = room.new_adapter("other", seed=9)
    candidate = room.adapter.model_name
    room.gate(NO_WORSE, name="named", baseline=other.model_name)
    evaluate(room, "--gate", "gate.yaml", "--adapter", candidate, "--adapter", other.model_name)
    root = room.workspace.root
    decision = json.loads(llmops(root, "gate", "check", "gate.yaml", "--adapter", candidate, "--json").out)
    assert (decision["baseline"], decision["champion"], decision["verdict"]) == (other.adapter, None, "PASS")
    evaluate(room, "--adapter", candidate)
    alone = llmops(root, "gate", "check", "gate.yaml", "--adapter", candidate)
    assert alone.code == 4
    assert "with --adapter for one that is neither base nor champion" in alone.err
    itself = llmops(root, "gate", "check", "gate.yaml", "--adapter", other.model_name)
    assert itself.code == 2
    assert "is the candidate itself" in itself.err
