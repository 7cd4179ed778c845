"""One leaderboard over all campaigns: equal to a logistic regression on all votes, and silent where nobody may look."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import statsmodels.api as sm

from llmops.ratings.campaigns import close_campaign
from llmops.ratings.strength import ADDED, Duel, joined, strengths
from llmops.ratings.withdrawn import withdraw
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.in_process import llmops
from tests.ratings.campaign import book_of, item, make_campaign, vote

A, B, C = "a" * 64, "b" * 64, "c" * 64
N = 14


def asked(
    workspace: Workspace, name: str, systems: tuple[str, str], seed: int, **more: object
) -> list[tuple[str, str]]:
    """A campaign of two people's votes; what each said of which prompt."""
    campaign = make_campaign(
        workspace, [item(i) for i in range(N)], votes_per_item=2, name=name, systems=systems, **more
    )
    book, draw, said = book_of(workspace, campaign), random.Random(seed), []
    for rater in ("ann", "ben"):
        for _ in range(N):
            choice = draw.choice(["first", "first", "second", "tie", "both_bad"])
            said.append((vote(book, rater, choice), choice))
    return said


def regression(duels: list[Duel]) -> dict[str, float]:
    """Bradley and Terry's strengths as a logistic regression of outcomes on the difference of two systems."""
    names = sorted({name for duel in duels for name in (duel.first, duel.second)})
    met = {frozenset((duel.first, duel.second)) for duel in duels}
    prior = [Duel("", *sorted(pair), won) for pair in met for won in (1.0, 0.0)]
    rows = [(duel, 1.0) for duel in duels] + [(duel, ADDED) for duel in prior]
    design = np.array([[(n == d.first) - (n == d.second) for n in names[1:]] for d, _ in rows], dtype=float)
    fit = sm.GLM(
        [d.won for d, _ in rows], design, family=sm.families.Binomial(), freq_weights=[w for _, w in rows]
    ).fit()
    logs = np.append(0.0, fit.params)
    return dict(zip(names, logs - logs.mean(), strict=True))


def board(workspace: Workspace, *words: str) -> dict[str, object]:
    done = llmops(workspace.root, "feedback", "leaderboard", "--json", *words)
    assert done.code == 0, done.err
    (league,) = json.loads(done.out)
    found: dict[str, object] = league
    return found


def test_strengths_over_campaigns_are_those_of_a_logistic_regression_on_all_votes(
    workspace: Workspace,
) -> None:
    duels = []
    for seed, (name, systems) in enumerate({"one": (A, B), "two": (B, C), "again": (C, A)}.items()):
        worth = {"first": 1.0, "tie": 0.5, "second": 0.0}
        duels += [Duel(i, *systems, worth[c]) for i, c in asked(workspace, name, systems, seed) if c in worth]
    found = board(workspace)
    (ranked,) = found["boards"]  # type: ignore[misc]
    assert len(found["campaigns"]) == 3  # type: ignore[arg-type]
    assert (ranked["n_votes"], ranked["n_clusters"]) == (len(duels), N), (
        "one prompt in three campaigns is one"
    )
    expected = regression(duels)
    assert {row["system"]: row["strength"] for row in ranked["rows"]} == pytest.approx(expected, abs=1e-6)
    assert [row["system"] for row in ranked["rows"]] == sorted(expected, key=lambda name: -expected[name])
    assert all(row["low"] < row["strength"] < row["high"] for row in ranked["rows"])
    (by_rater,) = board(workspace, "--cluster", "rater")["boards"]  # type: ignore[misc]
    assert by_rater["n_clusters"] == 2
    told = llmops(workspace.root, "feedback", "leaderboard", "--cluster", "rater").out
    assert "2 raters are too few for these intervals to be believed" in told
    withdraw(Registry.of(workspace).ledger, "ann")
    (left,) = board(workspace)["boards"]  # type: ignore[misc]
    assert left["n_votes"] < len(duels)


def test_a_gates_votes_stay_out_until_they_may_be_looked_at(workspace: Workspace) -> None:
    asked(workspace, "one", (A, B), 1)
    before = board(workspace)["boards"]
    gate = make_campaign(workspace, [item(i) for i in range(3)], "gate", name="gate", systems=(A, B))
    vote(book_of(workspace, gate), "ann", "first")
    found = board(workspace)
    assert found["boards"] == before
    assert [name.split("@")[0] for name in found["withheld"]] == ["gate"]  # type: ignore[attr-defined]
    close_campaign(Registry.of(workspace).ledger, gate)
    found = board(workspace)
    assert (found["withheld"], len(found["campaigns"])) == ([], 2)  # type: ignore[arg-type]
    assert found["boards"] != before


def test_models_that_never_met_have_tables_of_their_own(workspace: Workspace) -> None:
    asked(workspace, "one", (A, B), 1)
    asked(workspace, "two", (C, "d" * 64), 2)
    boards = board(workspace)["boards"]
    groups = [{row["system"] for row in each["rows"]} for each in boards]  # type: ignore[attr-defined]
    assert sorted(groups, key=min) == [{A, B}, {C, "d" * 64}]
    told = llmops(workspace.root, "feedback", "leaderboard").out
    assert "models of one table were never compared with those of another" in told


def test_without_a_campaign_about_it_there_is_no_leaderboard(workspace: Workspace) -> None:
    asked(workspace, "one", (A, B), 1)
    done = llmops(workspace.root, "feedback", "leaderboard", "nothing")
    assert (done.code, "no campaign compares models of nothing" in done.err) == (2, True)
    make_campaign(workspace, [item(i) for i in range(3)], name="nobody voted", systems=(A, B))
    assert len(board(workspace, "b" * 12)["campaigns"]) == 1  # type: ignore[arg-type]


def test_raters_who_disagree_make_wider_intervals_than_their_votes_alone() -> None:
    """Ten people, each of one mind: resampling people must show it, resampling 200 votes hides it."""
    opinions = [float(i % 2) for i in range(10)]
    by_rater = [Duel(f"rater {r}", A, B, won) for r, won in enumerate(opinions) for _ in range(20)]
    alone = [Duel(str(i), A, B, duel.won) for i, duel in enumerate(by_rater)]
    wide, narrow = (row.high - row.low for row in (strengths(by_rater)[0], strengths(alone)[0]))
    assert wide > 3 * narrow
    assert [sorted(group) for group in joined(alone)] == [[A, B]]
