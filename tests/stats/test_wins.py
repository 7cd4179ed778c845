"""Win rates: closed forms where votes stand alone, and their level with items and raters that lean one way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmops.errors import InvalidEvidence
from llmops.stats import decide_bound, paired_binary, win_rate
from llmops.stats.binary import clustered_error
from llmops.stats.wins import _error
from tests.stats.calibration import tally


def test_votes_that_stand_alone_are_paired_binary_outcomes() -> None:
    votes = [1] * 24 + [0.5] * 10 + [0] * 16
    alone = win_rate(votes, 0.95, items=range(50), raters=[f"r{i}" for i in range(50)])
    wins, losses = [v == 1 for v in votes], [v == 0 for v in votes]
    pairs = paired_binary(losses, wins, 0.95)
    assert (alone.estimate, alone.low, alone.high) == pytest.approx(
        (0.58, 0.5 + pairs.low / 2, 0.5 + pairs.high / 2)
    )
    assert win_rate(votes, 0.95).low == alone.low


def test_two_way_variance_is_cameron_gelbach_and_millers() -> None:
    """By item + by rater - by cell, each with its own correction G / (G - 1), on a full 12 x 5 table of votes."""
    rng = np.random.default_rng(1)
    table = rng.choice([-1.0, 0.0, 1.0], (12, 5), p=[0.2, 0.3, 0.5]) + 0
    x = table.ravel()
    items, raters = np.repeat(np.arange(12), 5), np.tile(np.arange(5), 12)
    residual = table - x.mean()
    parts = [(residual.sum(axis=axis) ** 2).sum() * g / (g - 1) for axis, g in ((1, 12), (0, 5))]
    cells = (residual**2).sum() * 60 / 59
    expected = max(sum(parts) - cells, *parts) / 60**2
    found = _error(x, items, raters)
    assert found is not None
    assert found.se**2 == pytest.approx(expected)
    assert (found.df, found.n_clusters) == (4.0, 12)


def test_votes_by_item_alone_are_clustered_once() -> None:
    votes = np.random.default_rng(2).choice([0, 0.5, 1], 90)
    items = np.repeat(np.arange(30), 3)
    found, error = win_rate(votes, 0.95, items), clustered_error(2 * votes - 1, items)
    assert found.n_clusters == 30
    assert found.sd >= error.se * math.sqrt(90) / 2 * 0.99


def test_one_rater_says_nothing_about_others() -> None:
    found = win_rate([1] * 50, 0.95, items=range(50), raters=["ann"] * 50)
    assert found.doubt == "one rater alone says nothing about others: at least 3 are needed"
    assert decide_bound(found, 0.5) == "INCONCLUSIVE"
    assert win_rate([1] * 50, 0.95, items=range(50)).doubt is None


def test_rater_who_likes_everything_moves_the_bound_more_than_many_who_agree() -> None:
    raters = np.arange(100) % 5
    split = np.where(raters < 3, 1.0, 0.0)
    mixed = np.where(np.arange(100) % 10 < 6, 1.0, 0.0)
    taste = win_rate(split, 0.95, raters=raters)
    chance = win_rate(mixed, 0.95, raters=np.arange(100) // 20)
    assert taste.estimate == chance.estimate == 0.6
    assert taste.low < 0.2 < 0.45 < chance.low


def test_what_is_no_vote_is_refused() -> None:
    with pytest.raises(InvalidEvidence, match=r"0\.7 is no vote"):
        win_rate([1, 0.7], 0.95)


@pytest.mark.stats
@pytest.mark.parametrize(
    ("n_raters", "n_items", "per_item", "spread"),
    [(3, 60, 3, 1.0), (6, 80, 1, 0.7), (12, 60, 2, 0.5)],
    ids=["3 who rate all", "6 who share items", "12, two each"],
)
def test_win_rate_keeps_its_level_where_raters_and_items_lean(
    rng: np.random.Generator, n_raters: int, n_items: int, per_item: int, spread: float
) -> None:
    """Taste of raters and of items is normal; nobody is liked better in the mean; about 30 % ties."""
    items = np.repeat(np.arange(n_items), per_item)

    def one():  # type: ignore[no-untyped-def]
        raters = rng.random((n_items, n_raters)).argsort(axis=1)[:, :per_item].ravel()
        leaning = spread * (rng.normal(size=n_raters)[raters] + rng.normal(size=n_items)[items])
        liking = leaning + rng.normal(size=len(items))
        votes = np.where(liking > 0.4, 1.0, np.where(liking < -0.4, 0.0, 0.5))
        return win_rate(votes, 0.95, items, raters)

    tally(one, 0.5).assert_holds(decided=0.99)
