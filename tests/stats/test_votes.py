"""The gate's checks on votes keep their 5 %: exact over all outcomes, and from rating rows with raters who differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llmops.evals.gate.people import RatingRules
from llmops.evals.gate.vote_checks import Electorate, vote_lines
from llmops.ratings.outcomes import Outcome, outcome, votes_by_item
from llmops.records import Check, Rating
from tests.stats.calibration import NOMINAL, assert_at_nominal

pytestmark = pytest.mark.stats

SIZES = [40, 64, 100, 200]
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
def test_candidate_nobody_prefers_passes_superiority_5_percent_of_the_time_and_fails_as_often(n: int) -> None:
    found = exact(n, (1 - TIES) / 2, (1 - TIES) / 2, rules())
    assert found["PASS"] == pytest.approx(NOMINAL, abs=0.002)
    assert found["FAIL"] == pytest.approx(found["PASS"])


@pytest.mark.parametrize("n", SIZES)
def test_candidate_worse_by_the_whole_margin_passes_non_inferiority_5_percent_of_the_time(n: int) -> None:
    asked = rules({"kind": "non_inferior", "margin": 10})
    found = exact(n, (1 - TIES) / 2 - 0.1, (1 - TIES) / 2 + 0.1, asked)
    assert found["PASS"] == pytest.approx(NOMINAL, abs=0.005)
    assert found["FAIL"] == pytest.approx(NOMINAL, abs=0.005)


def test_items_planned_for_equal_systems_pass_non_inferiority_four_times_in_five() -> None:
    """109 items for a margin of 10 points with 30 % ties, as the page on gates says."""
    found = exact(109, (1 - TIES) / 2, (1 - TIES) / 2, rules({"kind": "non_inferior", "margin": 10}))
    assert found["PASS"] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("limit", [10, 20, 50])
def test_share_of_both_bad_at_its_limit_errs_5_percent_on_average_and_never_9(limit: int) -> None:
    """One count decides, so the error moves in steps with n; no interval without coin tosses avoids that."""
    passed, failed = [], []
    for n in range(40, 201, 4):
        counts = range(n + 1)
        weights = scipy_stats.binom.pmf(counts, n, limit / 100)
        verdicts = [vote_checks(rules(max_both_bad=limit), items(n, both_bad=k))[1].verdict for k in counts]
        passed.append(sum(w for w, verdict in zip(weights, verdicts, strict=True) if verdict == "PASS"))
        failed.append(sum(w for w, verdict in zip(weights, verdicts, strict=True) if verdict == "FAIL"))
    assert max(passed + failed) < 0.09
    assert np.mean(passed) == pytest.approx(NOMINAL, abs=0.008)
    assert np.mean(failed) == pytest.approx(NOMINAL, abs=0.008)


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


@pytest.mark.parametrize(("n", "n_raters"), [(40, 1), (100, 1), (200, 1), (60, 3)])
def test_rows_of_raters_without_a_preference_end_in_a_verdict_at_the_nominal_rate(
    n: int, n_raters: int
) -> None:
    rng = np.random.default_rng(109)
    verdicts = []
    for _ in range(1500):
        votes = votes_by_item(rating_rows(rng, n, n_raters))
        outcomes = [outcome(given) for given in votes.values()]
        verdicts.append(vote_checks(rules(), outcomes)[0].verdict)
    assert_at_nominal([verdict == "PASS" for verdict in verdicts])
    assert_at_nominal([verdict == "FAIL" for verdict in verdicts])


def test_the_yardstick_condemns_votes_that_are_looked_at_every_ten_items() -> None:
    """Why an open campaign shows nothing: stopping at the first PASS of 20 to 200 items."""
    rng = np.random.default_rng(113)
    stopped = []
    for _ in range(400):
        said = rng.choice(["first", "second", "tie"], 200, p=[(1 - TIES) / 2, (1 - TIES) / 2, TIES])
        looks = [vote_checks(rules(), list(said[:n]))[0].verdict for n in range(20, 201, 10)]
        stopped.append("PASS" in looks)
    with pytest.raises(AssertionError, match="anticonservative"):
        assert_at_nominal(stopped)
