"""The gate's checks on votes keep their 5 %: exact over all outcomes, and from rating rows with raters who differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llmops.evals.electorate import Electorate
from llmops.evals.gate.people import RatingRules
from llmops.evals.gate.vote_checks import vote_lines
from llmops.ratings.outcomes import Outcome, outcome, votes_by_item
from llmops.records import Check, Rating
from llmops.stats import n_for_power, vote_plan
from llmops.stats.binary import Changes, changes_interval
from tests.stats.calibration import NOMINAL, REPLICATIONS, assert_holds

pytestmark = pytest.mark.stats

SIZES = [40, 100]
TIES = 0.3
SUPERIOR: dict[str, Any] = {"kind": "superior", "by": 0}


def rules(win_rate: dict[str, Any] | None = None, **settings: Any) -> RatingRules:
    return RatingRules.model_validate(
        {"campaign": "c", "min_items": 2, "win_rate": win_rate or SUPERIOR, **settings}
    )


def items(n: int, **counts: int) -> list[Outcome]:
    """n outcomes with so many of each; the rest are ties."""
    said = [name for name, count in counts.items() for _ in range(count)]
    return [*said, *["tie"] * (n - len(said))]  # type: ignore[list-item]


def vote_checks(asked: RatingRules, outcomes: list[Outcome]) -> list[Check]:
    """The checks on items with one vote each; items whose raters split count half, as ties do."""
    votes = [[("r", "tie" if said == "split" else said)] for said in outcomes]
    return [line.check for line in vote_lines(asked, Electorate.of(votes), level=0.95, power=0.8)]  # type: ignore[arg-type]


def exact(n: int, p_win: float, p_loss: float, asked: RatingRules) -> dict[str, float]:
    """Probability of each verdict on the win rate of n items, summed over all outcomes that occur at all."""
    found = {"PASS": 0.0, "FAIL": 0.0, "INCONCLUSIVE": 0.0}
    shares = [p_win, p_loss, 1 - p_win - p_loss]
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            weight = float(scipy_stats.multinomial.pmf([wins, losses, n - wins - losses], n, shares))
            if weight > 1e-9:
                (check,) = vote_checks(asked, items(n, first=wins, second=losses))
                found[check.verdict] += weight
    return found


@pytest.mark.parametrize("n", SIZES)
def test_candidate_nobody_prefers_passes_and_fails_in_5_percent_at_most(n: int) -> None:
    found = exact(n, (1 - TIES) / 2, (1 - TIES) / 2, rules())
    assert 0.7 * NOMINAL < found["PASS"] <= NOMINAL
    assert found["FAIL"] == pytest.approx(found["PASS"])


@pytest.mark.parametrize("n", SIZES)
def test_candidate_worse_by_the_whole_margin_passes_non_inferiority_in_5_percent_at_most(n: int) -> None:
    asked = rules({"kind": "non_inferior", "margin": 10})
    found = exact(n, (1 - TIES) / 2 - 0.1, (1 - TIES) / 2 + 0.1, asked)
    assert 0.6 * NOMINAL < found["PASS"] <= NOMINAL
    assert 0.6 * NOMINAL < found["FAIL"] <= NOMINAL


def test_items_planned_for_equal_systems_pass_non_inferiority_four_times_in_five() -> None:
    """109 items for a margin of 10 points with 30 % ties by the normal formula; steps ask for a few more."""
    n = n_for_power(vote_plan(TIES, threshold=-0.1), 0.8)
    assert n is not None
    assert 109 < n < 120
    found = exact(n, (1 - TIES) / 2, (1 - TIES) / 2, rules({"kind": "non_inferior", "margin": 10}))
    assert found["PASS"] == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("limit", [10, 20, 50])
def test_share_of_both_bad_at_its_limit_never_errs_above_5_percent(limit: int) -> None:
    """Exact, over all counts; the error moves in steps with n, below the level."""
    for n in range(40, 201, 8):
        counts = range(n + 1)
        weights = scipy_stats.binom.pmf(counts, n, limit / 100)
        verdicts = [vote_checks(rules(max_both_bad=limit), items(n, both_bad=k))[1].verdict for k in counts]
        for verdict in ("PASS", "FAIL"):
            assert sum(w for w, v in zip(weights, verdicts, strict=True) if v == verdict) <= NOMINAL


def rating_rows(rng: np.random.Generator, n: int, n_raters: int) -> list[Rating]:
    """What raters said who like neither system better, on sides drawn anew: 30 % ties, the rest tossed."""
    rows = []
    for i in range(n):
        for rater in range(n_raters):
            choice = "tie" if rng.random() < TIES else ("left", "right")[int(rng.integers(2))]
            rows.append(
                Rating(len(rows) + 1, "c", f"i{i}", f"r{rater}", "s", int(rng.integers(2)), choice, "t")  # type: ignore[arg-type]
            )
    return rows


def counted(rows: list[Rating]) -> tuple[int, int]:
    """How many items the rows' votes say are won, and how many lost."""
    outcomes = [outcome(given) for given in votes_by_item(rows).values()]
    return outcomes.count("first"), outcomes.count("second")


@pytest.mark.parametrize(("n", "n_raters"), [(40, 1), (60, 3)])
def test_rows_of_raters_without_a_preference_end_in_a_verdict_no_more_often_than_the_level_says(
    rng: np.random.Generator, n: int, n_raters: int
) -> None:
    """Rows say of an item what plurality says of its votes' counts; each outcome is decided on once."""
    shares = np.array([(1 - TIES) / 2, (1 - TIES) / 2, TIES])
    votes = rng.multinomial(n_raters, shares, size=(REPLICATIONS, n))
    most = votes.max(axis=2, keepdims=True)
    alone = (votes == most).sum(axis=2) == 1
    won, lost = ((alone & (votes.argmax(axis=2) == k)).sum(axis=1) for k in (0, 1))
    pairs, times = np.unique(np.c_[won, lost], axis=0, return_counts=True)
    verdicts = [vote_checks(rules(), items(n, first=w, second=k))[0].verdict for w, k in pairs.tolist()]
    for verdict in ("PASS", "FAIL"):
        assert_holds(int(sum(t for t, v in zip(times, verdicts, strict=True) if v == verdict)))
    rows = np.array([counted(rating_rows(rng, n, n_raters)) for _ in range(50)])
    assert rows.mean(axis=0) == pytest.approx(pairs.T @ times / REPLICATIONS, abs=1.5)


def test_the_rule_condemns_votes_that_are_looked_at_every_ten_items(rng: np.random.Generator) -> None:
    """Why an open campaign shows nothing: stopping at the first PASS of 20 to 200 items."""
    shares = [(1 - TIES) / 2, (1 - TIES) / 2, TIES]
    counts = rng.multinomial(10, shares, size=(REPLICATIONS, 20)).cumsum(axis=1)
    stopped = np.zeros(REPLICATIONS, dtype=bool)
    for n in range(20, 201, 10):
        pairs, which = np.unique(counts[:, n // 10 - 1, :2], axis=0, return_inverse=True)
        low = [changes_interval(Changes(won, lost, n), 0.95).low for won, lost in pairs.tolist()]
        stopped |= np.array(low)[which] > 0
    with pytest.raises(AssertionError, match="wrong in"):
        assert_holds(int(stopped.sum()))
