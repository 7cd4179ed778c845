"""A/A runs of a gate: rates near the nominal on shuffled scores, and one system asked twice at a server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmops.evals.gate.calibrate import calibrate, rate, shuffled, worse
from tests.evals.conftest import Room, right
from tests.evals.gating import cases, gate, paired, scores
from tests.evals.test_gate import answer
from tests.in_process import llmops

RNG = np.random.default_rng(11)
GATE = gate(
    primary={"metric": "m", "kind": "superior"},
    guardrails=[{"metric": "m", "margin": 1.0}, {"metric": "hit", "margin": 10}],
)


def both(n: int = 120) -> dict[str, object]:
    """Two systems that differ a lot: what is shuffled must not know."""
    a = {
        "m": scores(RNG.normal(50, 5, n)),
        "hit": scores(100.0 * (RNG.random(n) < 0.5), "hit", kind="binary"),
    }
    b = {
        "m": scores(a["m"].per_case + 2 + RNG.normal(0, 2, n)),
        "hit": scores(100.0 * (RNG.random(n) < 0.7), "hit", kind="binary"),
    }
    return {"s": paired(a, b)}


def test_shuffled_systems_are_told_apart_at_the_nominal_rate() -> None:
    found, verdicts = calibrate(GATE, shuffled(both()), 400, seed=1)  # type: ignore[arg-type]
    by_name = {(c.check, c.kind): c for c in found}
    goal, guard, hit = by_name["m", "superior"], by_name["m", "non_inferior"], by_name["hit", "non_inferior"]
    for check in (goal, guard, hit):
        assert check.nominal == pytest.approx(5)
        assert check.false_pass is not None
        assert check.false_pass.low < 6.5
        assert check.false_pass.n == 400
        assert check.false_block.low < 5
    assert goal.false_pass is not None
    assert goal.false_pass.high > 4
    assert sum(v.times for v in verdicts.values()) == 400


def test_rate_has_the_interval_of_its_count() -> None:
    found = rate(5, 100)
    assert (found.percent, found.times, found.n) == (5, 5, 100)
    assert found.low < 5 < found.high
    assert rate(0, 100).low == 0


def test_worse_system_is_worse_by_the_whole_margin() -> None:
    before = both(5000)["s"]
    truth = {metric: before.candidate[metric].value for metric in ("m", "hit")}  # type: ignore[attr-defined]
    after = worse(GATE, "s", before, truth, np.random.default_rng(2))  # type: ignore[arg-type]
    for metric, margin in (("m", 1.0), ("hit", 10)):
        lost = before.candidate[metric].value - after.candidate[metric].value  # type: ignore[attr-defined]
        assert lost == pytest.approx(margin, abs=1.5 if metric == "hit" else 1e-9)
    assert set(np.unique(after.candidate["hit"].per_case)) <= {0.0, 100.0}


def test_a_worse_system_loses_the_margin_of_the_truth_and_not_of_the_draw() -> None:
    """Of a draw in which more was right by chance more is lost: the share is the same for all."""
    equals = shuffled(both())  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    right, lost = [], []
    for _ in range(400):
        drawn = equals.draw(rng)["s"]
        after = worse(GATE, "s", drawn, equals.truth["s"], rng)
        right.append(drawn.candidate["hit"].value)
        lost.append(drawn.candidate["hit"].value - after.candidate["hit"].value)
    assert np.mean(lost) == pytest.approx(10, abs=0.5)
    slope = np.polyfit(right, lost, 1)[0]
    assert slope == pytest.approx(10 / equals.truth["s"]["hit"], abs=0.1)


def test_clusters_are_drawn_and_swapped_whole() -> None:
    x = np.repeat(np.arange(20.0), 5)
    of = paired(scores(x), scores(x + 100), cases(100))
    of = type(of)(of.cases, of.baseline, of.candidate, tuple(f"c{i // 5}" for i in range(100)))
    drawn = shuffled({"s": of}).draw(np.random.default_rng(3))["s"]
    ours = drawn.candidate["m"].per_case.reshape(-1, 5)
    assert np.all(ours == ours[:, :1])
    assert drawn.clusters is not None
    assert len(set(drawn.clusters)) == 20


def test_calibration_of_a_session_is_told_with_intervals(room: Room) -> None:
    room.gate({"metric": "exact_match", "margin": 10})
    reports = answer(room, range(40), range(10, 70))
    root = room.workspace.root
    done = llmops(
        root, "gate", "calibrate", "gate.yaml", "--n", "60", "--session", reports[0].session, "--json"
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (check,) = found["checks"]
    assert (check["check"], check["false_pass"]["n"], check["false_block"]["n"]) == ("exact_match", 60, 60)
    assert sum(v["times"] for v in found["gate"].values()) == 60
    table = llmops(root, "gate", "calibrate", "gate.yaml", "--n", "20").out
    assert "brackets are 95 % intervals" in table
    assert llmops(root, "gate", "calibrate", "gate.yaml", "--n", "20").out == table


def test_one_system_asked_twice_is_asked_with_other_seeds_and_leaves_no_report(room: Room) -> None:
    room.suite(decoding={"temperature": 0.7, "max_tokens": 16, "seed": 3}, cases={
        "kind": "dataset", "name": "questions", "pool": "gate", "n_max": 20, "seed": 0,
    })  # fmt: skip
    room.gate({"metric": "exact_match", "margin": 40}, min_cases=8)
    counterpart = room.serve(lambda model, prompt, nth: right(prompt) if nth % 2 else "no idea")
    before = len(room.registry.ledger.events())
    done = llmops(
        room.workspace.root,
        "gate",
        "calibrate",
        "gate.yaml",
        "--endpoint",
        counterpart.url,
        "--runs",
        "3",
        "--json",
    )
    assert done.code == 0, done.err
    (check,) = json.loads(done.out)["checks"]
    assert check["false_block"]["n"] == 3
    assert {model for model, _ in counterpart.asked} == {room.adapter.model_name}
    assert len(counterpart.asked) == 6 * 20
    assert {body["seed"] for body in counterpart.bodies} == set(range(3, 9))
    assert len(room.registry.ledger.events()) == before
