"""Groups of like cases are the units of reports and decisions where a suite says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmops.errors import DataError
from llmops.evals.gate import check_gate
from llmops.evals.suite import load_suite
from llmops.records import Decision
from tests.evals.conftest import Room, number, right
from tests.in_process import llmops

CHECK = {"metric": "exact_match", "kind": "superior", "by": 0}


def serve_groups(room: Room) -> str:
    """An endpoint where both questions of a group are answered alike: the adapter knows more groups than the base."""

    def script(model: str, prompt: str, nth: int) -> str:
        group = number(prompt) // 2
        known = group % 4 == 0 if model == room.base.model_name else group % 8 < 3
        return right(prompt) if known else "no idea"

    return room.serve(script).url


def decided(room: Room, suite: Path) -> Decision:
    gate = room.gate(CHECK)
    done = llmops(
        room.workspace.root, "eval", str(suite), "--endpoint", serve_groups(room), "--gate", str(gate)
    )
    assert done.code == 0, done.err
    return check_gate(gate, room.workspace)


def test_groups_widen_what_the_command_reports_and_the_gate_decides_on(room: Room) -> None:
    """Two like cases a group: half as many independent units, so intervals that are wider by about sqrt(2)."""
    plain = decided(room, room.suite()).checks[0]
    clustered = decided(room, room.suite(cluster="group")).checks[0]
    assert clustered.difference == plain.difference > 0
    ratio = (clustered.high - clustered.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(2**0.5, abs=0.25)
    assert ("clustered" in clustered.method, "clustered" in plain.method) == (True, False)
    lines = [
        json.loads(line)
        for file in sorted(room.workspace.runs.glob("*/metrics.jsonl"))
        for line in file.read_text().splitlines()
    ]
    base = [line for line in lines if line["system"] == room.base.model_name]
    assert len(base) == 2
    widths = sorted(line["high"] - line["low"] for line in base)
    assert widths[1] > 1.2 * widths[0]


def test_cases_of_one_group_are_no_clusters(room: Room) -> None:
    cases = room.workspace.root / "cases.jsonl"
    cases.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "completion": "a", "group": "g"}) + "\n" for i in range(3))
    )
    path = room.suite(cases={"kind": "file", "path": str(cases)}, cluster="group")
    with pytest.raises(DataError, match="all 3 cases are of group g; add cases of other groups"):
        load_suite(path, room.registry)
