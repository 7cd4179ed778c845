"""Votes on two systems' answers: whose they are, on what, and the win rate they come to; reads no ratings.

Votes of a person are alike, so are votes on an item, and items of one group where the suite says so. Who is a cluster
depends on the votes alone, never on what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmops.ratings.outcomes import Outcome, Vote, outcome
from llmops.stats import Interval

WORTH: dict[Vote, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
"""A vote as a share of a win of the candidate."""
EVEN = 50.0
"""The win rate, in %, of two systems that people like equally."""


@dataclass(frozen=True)
class Electorate:
    """Each rated item's outcome, its votes with who gave them, and its cluster (None: items are independent)."""

    outcomes: tuple[Outcome, ...]
    votes: tuple[tuple[tuple[str, Vote], ...], ...]
    clusters: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls, votes: Sequence[Sequence[tuple[str, Vote]]], clusters: Sequence[str] | None = None
    ) -> Electorate:
        """From each item's votes, one or more, and each item's cluster."""
        outcomes = tuple(outcome([vote for _, vote in given]) for given in votes)
        return cls(
            outcomes, tuple(tuple(given) for given in votes), None if clusters is None else tuple(clusters)
        )

    @property
    def n_raters(self) -> int:
        """How many people voted."""
        return len({rater for given in self.votes for rater, _ in given})

    @property
    def speaks_for_others(self) -> bool:
        """Whether enough people voted to say something of others: their number is then part of the error."""
        from llmops.stats.guard import MIN_RATERS

        return self.n_raters >= MIN_RATERS

    @property
    def alike_by(self) -> str:
        """What makes votes alike, in words."""
        units = "item" if self.clusters is None else "group"
        if self.speaks_for_others:
            return f"{units} and rater"
        return f"{units}, of {'this rater' if self.n_raters == 1 else f'these {self.n_raters} raters'} alone"


def win_rate(voters: Electorate, level: float) -> Interval:
    """The interval of win rate - 50, in points; `level` is that of each bound.

    The mean worth of all votes, with items (or their clusters) as clusters, and raters too where there are enough of
    them to speak for others. One vote an item of one or two people on items that are independent: the paired interval
    of wins and losses, halved.
    """
    from llmops import stats

    one_each = all(len(given) == 1 for given in voters.votes)
    if one_each and voters.clusters is None and not voters.speaks_for_others:
        losses, wins = ([o == which for o in voters.outcomes] for which in ("second", "first"))
        rate = stats.paired_binary(losses, wins, level).scaled(EVEN)
        return replace(rate, method=f"{rate.method} on wins and losses; tie, both bad and split count half")
    rows = [(i, rater, WORTH[vote]) for i, given in enumerate(voters.votes) for rater, vote in given]
    items, raters, worth = zip(*rows, strict=True)
    units = items if voters.clusters is None else [voters.clusters[i] for i in items]
    found = stats.win_rate(worth, level, units, raters if voters.speaks_for_others else None)
    found = found.shifted(-0.5).scaled(100)
    n = len(voters.votes)
    method = (
        f"{found.method} of {len(rows)} votes clustered by {voters.alike_by}; tie and both bad count half"
    )
    return replace(found, n=n, sd=found.sd * (n / len(rows)) ** 0.5, method=method)
