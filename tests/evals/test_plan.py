"""Planning a gate: sizes from a pilot's spread are those of the power formula, and sizes without one are assumed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from scipy import stats as scipy_stats

from llmops import stats
from tests.evals.conftest import BETTER, Room, right
from tests.evals.test_gate import answer
from tests.in_process import llmops

GUARD = {"metric": "exact_match", "margin": 10}


def planned(room: Room, *options: str) -> list[dict[str, Any]]:
    done = llmops(room.workspace.root, "gate", "plan", "gate.yaml", "--json", *options)
    assert done.code == 0, done.err
    rows: list[dict[str, Any]] = json.loads(done.out)
    return rows


def size(sd: float, distance: float, power: float) -> int:
    """n = ((z_0.95 + z_power) sd / distance)^2."""
    z = scipy_stats.norm.ppf(0.95) + scipy_stats.norm.ppf(power)
    return math.ceil((z * sd / distance) ** 2)


def test_sizes_come_from_the_pilots_spread_with_equal_systems_for_margins_and_its_effect_for_goals(
    room: Room,
) -> None:
    room.gate(BETTER, GUARD)
    answer(room, range(40), range(10, 54))
    goal, guard = planned(room)
    a, b = ([i in known for i in range(100)] for known in (range(40), range(10, 54)))
    sd = 100 * stats.paired_binary(a, b, 0.95).sd
    assert goal["sd"] == pytest.approx(sd)
    assert guard["sd"] == pytest.approx(math.hypot(sd, 4))  # as many changes, and no difference
    for row, distance in ((guard, 10), (goal, 4)):
        for power in (0.8, 0.9, 0.95):
            assert row["needed"][f"{power:g}"] == pytest.approx(size(row["sd"], distance, power), rel=0.15)
    assert (guard["assumed"], goal["assumed"], goal["n_now"]) == (0, pytest.approx(4), 100)
    n = planned(room, "--effect", "8")[0]["needed"]["0.8"]
    assert n == pytest.approx(size(sd, 8, 0.8), rel=0.15)
    table = llmops(room.workspace.root, "gate", "plan", "gate.yaml").out
    assert f"{guard['needed']['0.95']:,}" in table
    assert "pilot of 100, equal systems" in table


def test_without_a_pilot_the_spread_is_assumed_and_said_so(room: Room) -> None:
    room.suite()
    room.gate(BETTER, GUARD)
    goal, guard = planned(room)
    n = stats.n_for_power(stats.binary_plan(0.15, 0.15, threshold=-0.1), 0.8)
    assert guard["needed"]["0.8"] == n == pytest.approx(size(100 * math.sqrt(0.3), 10, 0.8), rel=0.15)
    assert guard["basis"] == "no pilot: spread assumed"
    assert goal["needed"] == {"0.8": None, "0.9": None, "0.95": None}
    goal_n = planned(room, "--effect", "10")[0]["needed"]["0.8"]
    assert goal_n == pytest.approx(guard["needed"]["0.8"], rel=0.15)
    done = llmops(room.workspace.root, "gate", "plan", "gate.yaml", "--pilot", "eval-none")
    assert done.code == 4
    assert "in session eval-none" in done.err


def test_votes_need_as_many_items_as_the_page_says(room: Room) -> None:
    """443, 199 and 113 items for margins of 5, 7.5 and 10 points with 30 % ties."""
    room.suite()
    for margin, n in ((5, 443), (7.5, 199), (10, 113)):
        rules = {"campaign": "c", "win_rate": {"kind": "non_inferior", "margin": margin}}
        room.gate(GUARD, ratings=rules)
        row = planned(room)[-1]
        assert (row["check"], row["unit"], row["needed"]["0.8"]) == ("win_rate", "rated items", n)
    room.gate(GUARD, ratings={"campaign": "c", "win_rate": {"kind": "superior"}})
    row = planned(room, "--win-rate", "70", "--ties", "0")[-1]
    assert row["needed"]["0.9"] == stats.n_for_power(stats.vote_plan(0.0, 0.0, win_rate=0.7), 0.9)
    whole = planned(room, "--win-rate", "70", "--ties", "0")[-1]["needed"]["0.9"]
    room.gate(GUARD, ratings={"campaign": "c", "win_rate": {"kind": "superior"}, "looks": [50, 100]})
    assert whole < planned(room, "--win-rate", "70", "--ties", "0")[-1]["needed"]["0.9"] < 1.1 * whole


def test_pilot_that_is_no_evidence_is_refused(room: Room) -> None:
    room.gate(GUARD)
    reports = room.run(room.serve(lambda model, prompt, nth: right(prompt)))
    room.suite(metrics=["rougeL", "exact_match"])
    done = llmops(room.workspace.root, "gate", "plan", "gate.yaml", "--pilot", reports[0].session)
    assert done.code == 4
    assert "its file or its data changed" in done.err


def test_pilot_whose_systems_answered_alike_has_no_spread_to_plan_by(room: Room) -> None:
    room.suite(metrics=["rougeL"])
    room.gate({"metric": "rougeL", "margin": 2})
    room.run(room.serve(lambda model, prompt, nth: right(prompt)), room.workspace.root / "suite.yaml")
    (row,) = planned(room)
    assert (row["sd"], set(row["needed"].values())) == (0, {None})
    assert row["basis"] == "pilot of 100, answered alike: no spread to plan by"
