"""What a pairwise judge's verdicts come to: outcomes of cases, and how far the judge goes by place or length.

A case counts as won only where both orders say so; whatever the orders disagree on is a tie. Shapes: N cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy import stats as scipy_stats

from llmops import stats
from llmops.evals.judge.prompt import Showing
from llmops.records import Figure, Judgement
from llmops.stats.binary import clustered_error, design_effect, effective_share
from llmops.stats.guard import units_doubt
from llmops.stats.interval import are_units, cluster_codes

if TYPE_CHECKING:
    from llmops.stats import FloatArray, Interval, Labels

Outcome = Literal["first", "tie", "second"]
"""What a case comes to: `first` is won by the candidate, as items of a campaign spell it."""

_FIRST = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Compared:
    """A case judged in both orders: `forward` showed the candidate first, `backward` the baseline."""

    case: str
    forward: Judgement
    backward: Judgement
    longer_by: int  # characters of the candidate's answer beyond the baseline's

    @property
    def outcome(self) -> Outcome:
        """Who wins; a tie where the orders disagree."""
        forward, backward = self._for_candidate
        if forward == backward == 1:
            return "first"
        return "second" if forward == backward == 0 else "tie"

    @property
    def flipped(self) -> bool:
        """Whether the two orders disagree."""
        forward, backward = self._for_candidate
        return forward != backward

    @property
    def first_place(self) -> float:
        """Share of the two showings that the first place won; a tie is half."""
        return (self._placed(self.forward) + self._placed(self.backward)) / 2

    @property
    def _for_candidate(self) -> tuple[float, float]:
        return self._placed(self.forward), 1 - self._placed(self.backward)

    @staticmethod
    def _placed(judgement: Judgement) -> float:
        assert judgement.verdict is not None
        return _FIRST[judgement.verdict]


def compared(showing: Showing, forward: Judgement, backward: Judgement) -> Compared | None:
    """A case's two judgements as one; None where either errored: half a comparison is none.

    `showing` and `forward` are those with the candidate's answer first.
    """
    ours, theirs = showing.answers
    if forward.status == "errored" or backward.status == "errored":
        return None
    return Compared(ours.case, forward, backward, len(ours.text) - len(theirs.text))


def pairwise_figures(
    cases: Sequence[Compared], level: float, clusters: Labels | None = None
) -> tuple[Figure, ...]:
    """Win rate, flip rate, share of the first place, and what length explains; none of fewer than two cases.

    `clusters[i]` is the cluster of `cases[i]`; None where cases are independent.
    """
    if len(cases) < 2:
        return ()
    outcomes = [case.outcome for case in cases]
    rate = win_rate(outcomes, level, clusters)
    flips = stats.proportion_interval([case.flipped for case in cases], level, clusters).scaled(100)
    place = share_interval([case.first_place for case in cases], level, clusters).scaled(100)
    figures = [
        figure("win_rate", rate, shift=50.0),
        figure("flip_rate", flips),
        figure("first_place", place),
    ]
    lengths = [case.longer_by for case in cases]
    correlation = length_correlation(outcomes, lengths, level, clusters)
    if correlation is not None:
        figures.append(figure("length_correlation", correlation))
    told = [i for i, (o, by) in enumerate(zip(outcomes, lengths, strict=True)) if o != "tie" and by]
    if len(told) >= 2:
        won = [(outcomes[i] == "first") == (lengths[i] > 0) for i in told]
        of = None if clusters is None else np.asarray(clusters)[told]
        figures.append(figure("longer_wins", stats.proportion_interval(won, level, of).scaled(100)))
    return tuple(figures)


def win_rate(outcomes: Sequence[str], level: float, clusters: Labels | None = None) -> Interval:
    """The win rate less 50, in points: Tango's interval of wins and losses; what is neither counts half."""
    losses, wins = ([o == which for o in outcomes] for which in ("second", "first"))
    return stats.paired_binary(losses, wins, level, clusters).scaled(50)


def share_interval(values: Sequence[float], level: float, clusters: Labels | None = None) -> Interval:
    """An interval of the mean of values in [0, 1] that keeps its level also where all are equal.

    No such values vary more than coins of the same mean, so Clopper and Pearson's interval of that many coins covers at
    least as often; it is theirs where the values are 0 and 1.

    >>> round(share_interval([1.0, 1.0, 1.0, 1.0], level=0.95).low, 3)
    0.473
    """
    x = np.asarray(values, dtype=float)
    n, k = len(x), float(x.sum())
    p = (k + 0.5) / (n + 1)
    sd, method = math.sqrt(p * (1 - p)), "clopper-pearson, as for coins"
    codes = cluster_codes(clusters, n)
    share, n_clusters, doubt = 1.0, None, None
    if are_units(codes):
        error = clustered_error(x, codes)
        effect = design_effect(error, sd, n)
        share, n_clusters, doubt = (
            effective_share(effect, error.df, level),
            error.n_clusters,
            units_doubt(error.n_clusters),
        )
        sd, method = sd * math.sqrt(effect), f"{method}, clustered"
    hit, missed = k * share, (n - k) * share
    low = float(special.betaincinv(hit, missed + 1, 1 - level)) if k > 0 else 0.0
    high = float(special.betaincinv(hit + 1, missed, level)) if k < n else 1.0
    return stats.Interval(k / n, low, high, level, n, sd, method, n_clusters, doubt)


def length_correlation(
    outcomes: Sequence[str], longer_by: Sequence[int], level: float, clusters: Labels | None = None
) -> Interval | None:
    """Spearman's correlation of who wins with whose answer is longer; None where either does not vary.

    The interval is Fisher's with Bonett and Wright's variance; with clusters, that or the delete-one-cluster
    jackknife's, whichever is wider. It shows no bias by itself: the longer answer may be the better one. Held beside
    people's on the same items it does.

    Source: Bonett and Wright, Sample size requirements for estimating Pearson, Kendall and Spearman correlations,
    Psychometrika 65 (2000) 23-28.
    """
    won = np.array([_FIRST.get(o, 0.5) for o in outcomes])
    by = np.array(longer_by, dtype=float)
    n = len(won)
    if n < 4 or np.all(won == won[0]) or np.all(by == by[0]):
        return None
    r = _spearman(won, by)
    z = _fisher(r)
    half = float(special.ndtri(level)) * math.sqrt((1 + r * r / 2) / (n - 3))
    codes = cluster_codes(clusters, n)
    n_clusters = doubt = None
    if are_units(codes):
        n_clusters = int(codes.max()) + 1
        doubt = units_doubt(n_clusters)
        spread = _jackknife_error([_fisher_without(won, by, codes != g) for g in range(n_clusters)])
        half = max(half, float(special.stdtrit(n_clusters - 1, level)) * spread)
    bounds = math.tanh(z - half), math.tanh(z + half)
    sd = math.sqrt(1 + r * r / 2)
    return stats.Interval(r, *bounds, level, n, sd, "spearman, fisher z", n_clusters, doubt)


def _fisher(r: float) -> float:
    return math.atanh(min(max(r, -0.999999), 0.999999))


def _fisher_without(won: FloatArray, by: FloatArray, kept: npt.NDArray[np.bool_]) -> float:
    """Fisher's z of the cases that are kept; 0 where one of the two does not vary among them."""
    x, y = won[kept], by[kept]
    if np.all(x == x[0]) or np.all(y == y[0]):
        return 0.0
    return _fisher(_spearman(x, y))


def _spearman(x: FloatArray, y: FloatArray) -> float:
    a, b = (ranks - ranks.mean() for ranks in (scipy_stats.rankdata(x), scipy_stats.rankdata(y)))
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def _jackknife_error(left_out: Sequence[float]) -> float:
    n = len(left_out)
    return math.sqrt((n - 1) / n * float(np.sum((np.array(left_out) - np.mean(left_out)) ** 2)))


def figure(name: str, found: Interval, shift: float = 0.0, system: str | None = None) -> Figure:
    """An interval as a figure; `shift` is added to the value and its bounds. What is in doubt says so as its method."""
    value, low, high = (x + shift for x in (found.estimate, found.low, found.high))
    method = f"{found.method}; in doubt: {found.doubt}" if found.doubt else found.method
    return Figure(name, value, low, high, found.level, found.n, method, system)
