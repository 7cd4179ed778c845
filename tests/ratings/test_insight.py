"""Agreement, strengths, bias and pace equal what other programs and closed forms say of the same answers."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from llmops.db import writing
from llmops.ledger import Ledger
from llmops.ratings.agreement import cohen_kappa, krippendorff_alpha, pairwise_kappas
from llmops.ratings.book import RatingBook
from llmops.ratings.insight import insight
from llmops.ratings.rows import Answer
from llmops.ratings.strength import ADDED, Duel, fitted, strengths
from llmops.ratings.watch import pace, share
from llmops.records import VotePlan
from llmops.settings import Workspace
from llmops.tables import ratings, showings
from tests import in_process
from tests.ratings.campaign import book_of, item, make_campaign, vote


def drawn_units(seed: int, values: list[int], n: int = 40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.choice(values) for _ in range(draw.randint(0, 4))] for _ in range(n)]


@pytest.mark.parametrize("scale", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_krippendorffs(scale: str, seed: int) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    values = [1, 2, 3, 5]
    units = drawn_units(seed, values)
    counts = np.array([[unit.count(v) for v in values] for unit in units])
    expected = krippendorff.alpha(
        value_counts=counts, level_of_measurement=scale, value_domain=np.array(values)
    )
    found = krippendorff_alpha(units, scale)  # type: ignore[arg-type]
    assert found.alpha == pytest.approx(expected, abs=1e-12)
    assert found.n_items == sum(len(u) > 1 for u in units)


def test_kappa_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    for _ in range(20):
        a = [draw.choice("xyz") for _ in range(30)]
        b = [draw.choice("xyz") if draw.random() < 0.5 else v for v in a]
        assert cohen_kappa(a, b) == pytest.approx(metrics.cohen_kappa_score(a, b), abs=1e-12)
    assert cohen_kappa(["x", "x"], ["x", "x"]) is None
    (found,) = pairwise_kappas(
        {"ann": {"1": "x", "2": "y", "3": "x"}, "ben": {"1": "x", "2": "x", "9": "y"}, "cid": {}}
    )
    assert (found.raters, found.n_items, found.kappa) == (("ann", "ben"), 2, cohen_kappa("xy", "xx"))


def likelihood(logs: np.ndarray, wins: np.ndarray) -> float:
    full = np.append(logs, -logs.sum())
    gap = full[:, None] - full
    return float(np.sum(wins * np.logaddexp(0, -gap)))


def test_strengths_are_the_likeliest_that_an_optimizer_finds() -> None:
    rng = np.random.default_rng(5)
    for n in (2, 3, 5):
        wins = rng.integers(1, 20, size=(n, n)).astype(float)
        np.fill_diagonal(wins, 0)
        best = optimize.minimize(likelihood, np.zeros(n - 1), args=(wins,), tol=1e-12)
        assert fitted(wins) == pytest.approx(np.append(best.x, -best.x.sum()), abs=1e-4)


def test_two_systems_differ_by_their_log_odds_and_ties_are_half_wins() -> None:
    duels = [Duel(str(i), "a", "b", won) for i, won in enumerate([1.0] * 12 + [0.5] * 6 + [0.0] * 4)]
    best, second = strengths(duels)
    assert (best.system, best.n_votes, best.wins) == ("a", 22, 15.0)
    assert best.strength - second.strength == pytest.approx(math.log((15 + ADDED) / (7 + ADDED)), abs=1e-8)
    assert best.low < best.strength < best.high
    one_sided = strengths([Duel(str(i), "a", "b", 1.0) for i in range(9)])
    assert one_sided[0].strength == pytest.approx(math.log(19) / 2, abs=1e-6)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % intervals: fewer than 87 of 100 hits happen once in 1,000 where 95 % is true."""
    rng, truth, hits = np.random.default_rng(2), 0.4, 0
    for _ in range(100):
        won = rng.random(60) < 1 / (1 + math.exp(-2 * truth))
        duels = [Duel(str(i), "a", "b", float(w)) for i, w in enumerate(won)]
        row = next(s for s in strengths(duels, n_resamples=120) if s.system == "a")
        hits += row.low <= truth <= row.high
    assert stats.binom.cdf(86, 100, 0.95) < 1 / 1000
    assert hits >= 87


def test_systems_that_were_never_compared_are_not_ranked() -> None:
    assert strengths([Duel("1", "a", "b", 1.0), Duel("2", "c", "d", 1.0)]) == []
    chain = strengths([Duel("1", "a", "b", 1.0), Duel("2", "b", "c", 1.0)], n_resamples=20)
    assert [s.system for s in chain] == ["a", "b", "c"]


def test_shares_have_exact_intervals() -> None:
    for hits, n in ((0, 7), (3, 10), (9, 9)):
        found = share([True] * hits + [False] * (n - hits))
        exact = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert share([]).frac is None


def test_breaks_are_no_work() -> None:
    at = [f"2026-01-01T00:{m:02d}:00.000Z" for m in (0, 1, 2, 30, 31)]
    assert pace(at) == 60.0
    assert pace(at[:1]) is None
    assert pace(["2026-01-01T00:00:00.000Z", "2026-01-01T06:00:00.000Z"]) is None


def watched_book(workspace: Workspace) -> RatingBook:
    """Eight items of two votes, a gold one every fourth, and two repeats."""
    items = [item(i) for i in range(8)]
    gold = [replace(item(90 + i), known="first") for i in range(4)]
    repeats = [replace(i, repeat_of=i.digest) for i in items[:2]]
    campaign = make_campaign(
        workspace, [*items, *gold, *repeats], votes_per_item=2, n_gold=4, n_repeats=2, gold_every=4
    )
    return book_of(workspace, campaign)


def test_figures_are_those_of_the_rows(workspace: Workspace) -> None:
    book = watched_book(workspace)
    first_said: dict[str, str] = {}
    for rater in ("ann", "ben"):
        n = 0
        while (showing := book.next(rater)) is not None:
            shown = showing.item
            says = "left" if rater == "ann" else ("left" if showing.left == 0 else "right")
            if shown.repeat_of is not None and rater == "ann":
                # Swapped: the same side is the other answer.
                assert first_said[shown.repeat_of] != shown.answers[showing.left]
            if rater == "ann":
                first_said[shown.digest] = shown.answers[showing.left]
            book.rate(showing.id, Answer(says, dwell_ms=2000 + n))
            n += 1
        assert n == 8 + n // 4 + 2 or n >= 8 + 2
    seen = insight(book)
    ann, ben = (next(p for p in seen.raters if p.rater == who) for who in ("ann", "ben"))
    assert (seen.n_items, seen.n_full, seen.n_votes) == (8, 8, 16)
    assert ann.left.frac == 1.0
    assert (ann.repeats.n, ann.repeats.hits) == (2, 0)
    assert (ben.repeats.n, ben.repeats.hits) == (2, 2)
    assert ben.gold.n == ben.gold.hits > 0
    assert ben.dwell_s == pytest.approx((2000 + (ben.n_answers - 1) / 2) / 1000)
    assert seen.outcomes is not None
    assert sum(seen.outcomes.values()) == 8
    assert seen.items_by_votes == {2: 8}
    assert seen.leaderboard is not None
    assert seen.leaderboard[0].n_votes == 16
    sides = [r.choice == "left" for r in book.ratings()]
    assert (seen.left.n, seen.left.hits) == (len(sides), sum(sides))


PLAN = VotePlan((2, 4), 2, 2, None, "superior", 0.0, 0.95, 0.8)


def test_gates_campaign_tells_what_is_needed_and_nothing_of_how_it_goes(workspace: Workspace) -> None:
    campaign = make_campaign(workspace, [item(i) for i in range(4)], purpose="gate", plan=PLAN)
    book = book_of(workspace, campaign)
    vote(book, "ann", "first")
    seen = insight(book)
    assert (seen.outcomes, seen.leaderboard) == (None, None)
    assert seen.withheld is not None
    assert seen.needs is not None
    assert (seen.needs.next_look, seen.needs.n_votes_missing, seen.needs.n_raters_missing) == (2, 1, 1)
    # O'Brien and Fleming at half of the information: Jennison and Turnbull (2000), by Lan and DeMets' spending.
    assert seen.needs.look_level == pytest.approx(1 - 0.00557, abs=1e-4)
    done = in_process.llmops(workspace.root, "feedback", "insight", "docs", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["schema"], told["leaderboard"], told["outcomes"]) == ("llmops.insight/1", None, None)
    assert "a" * 12 not in done.out
    plain = in_process.llmops(workspace.root, "feedback", "insight", "docs").out
    assert "gate     needs 1 more votes to look at 2 items" in plain
    assert "gate     needs 1 more raters" in plain
    assert "first" not in plain
    assert "withheld nobody looks at a gate's votes" in plain
    for who in ("ben", "ann", "ben"):
        vote(book, who, "first")
    after = insight(book)
    assert (after.outcomes, after.withheld) == ({"first": 4}, None)
    assert after.leaderboard is not None
    assert after.leaderboard[0].system == "a" * 64


def test_scores_agree_as_ranks_do(workspace: Workspace) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    single = [replace(item(i), answers=(f"first {i}",)) for i in range(6)]
    book = book_of(workspace, make_campaign(workspace, single, kind="rate", votes_per_item=3))
    draw, given = random.Random(4), {i.digest: [] for i in single}  # type: ignore[var-annotated]
    for rater in ("ann", "ben", "cid"):
        while (showing := book.next(rater)) is not None:
            value = draw.randint(1, 5)
            given[showing.item.digest].append(value)
            book.rate(showing.id, Answer("rated", scores={"correct": value}))
    (scored,) = insight(book).scores
    values = [v for each in given.values() for v in each]
    counts = np.array([[each.count(v) for v in range(1, 6)] for each in given.values()])
    expected = krippendorff.alpha(
        value_counts=counts, level_of_measurement="ordinal", value_domain=np.arange(1, 6)
    )
    assert scored.agreement.alpha == pytest.approx(expected, abs=1e-12)
    assert scored.mean == pytest.approx(sum(values) / len(values))
    assert "score    correct: mean" in in_process.llmops(workspace.root, "feedback", "insight", "docs").out


def test_time_on_an_item_counts_from_when_it_was_first_shown(workspace: Workspace) -> None:
    book = book_of(workspace, make_campaign(workspace, [item(0)]))
    showing = book.next("ann")
    assert showing is not None
    with writing(Ledger.of(workspace).engine) as connection:
        connection.execute(showings.update().values(first_at="2026-01-01T00:00:00.000Z"))
    book.next("ann")  # a reload renews the lease, not the beginning
    book.rate(showing.id, "tie")
    with Ledger.of(workspace).engine.connect() as connection:
        assert connection.execute(ratings.select()).one().dwell_ms is None
    (person,) = insight(book).raters
    assert person.dwell_s is not None
    assert person.dwell_s > 3600
