"""Which system people like best, of two or more that were compared in pairs: Bradley and Terry's strengths.

A tie is half a win each; both bad says nothing about which is better and is left out. Between any two systems that met,
half a win is added each way, so that one which never lost has a finite strength (for two systems that is Haldane's and
Anscombe's log odds). Intervals are percentiles of a bootstrap over clusters (items, prompts or raters), whose votes
belong together.

Sources: Bradley and Terry, Biometrika 39 (1952) 324-345; Hunter, MM algorithms for generalized Bradley-Terry models,
Ann. Stat. 32 (2004) 384-406.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
N_RESAMPLES = 400
LEVEL = 0.95
ADDED = 0.5
_TOLERANCE = 1e-10
_MAX_STEPS = 10_000


@dataclass(frozen=True)
class Strength:
    """One system: natural log of its strength (the mean of all is 0) with a 95 % interval; wins, ties counting half."""

    system: str
    strength: float
    low: float
    high: float
    n_votes: int
    wins: float


@dataclass(frozen=True)
class Duel:
    """One vote: the two systems, and what the first won: 1, 0.5 or 0. Votes of one `cluster` are resampled together."""

    cluster: str
    first: str
    second: str
    won: float


def strengths(duels: Sequence[Duel], seed: int = 0, n_resamples: int = N_RESAMPLES) -> list[Strength]:
    """The systems by strength, the best first; empty where nothing joins all of them by comparisons.

    >>> [round(s.strength, 3) for s in strengths([Duel("i", "a", "b", 1.0)] * 7 + [Duel("j", "a", "b", 0.0)] * 3)]
    [0.381, -0.381]
    """
    names = sorted({name for duel in duels for name in (duel.first, duel.second)})
    place = {name: i for i, name in enumerate(names)}
    clusters = sorted({duel.cluster for duel in duels})
    wins = np.zeros((len(clusters), len(names), len(names)))
    at = {cluster: i for i, cluster in enumerate(clusters)}
    for duel in duels:
        a, b = place[duel.first], place[duel.second]
        wins[at[duel.cluster], a, b] += duel.won
        wins[at[duel.cluster], b, a] += 1 - duel.won
    total = wins.sum(axis=0)
    if len(joined(duels)) != 1:
        return []
    met = (total + total.T) > 0
    found = fitted(total + ADDED * met)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), size=n_resamples)
    again = np.array([fitted(np.tensordot(draw, wins, axes=1) + ADDED * met) for draw in draws])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(again, [tail, 1 - tail], axis=0)
    n_votes = (total + total.T).sum(axis=1)
    rows = [
        Strength(
            name, float(found[i]), float(low[i]), float(high[i]), round(float(n_votes[i])), float(total[i].sum())
        )
        for name, i in place.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.strength)


def fitted(wins: FloatArray) -> FloatArray:
    """The log strengths that make these wins likeliest, their mean 0, by Hunter's MM algorithm.

    Args:
        wins: [S, S] how often the row's system beat the column's; everything is joined by comparisons both ways.
    """
    n = wins + wins.T
    won = wins.sum(axis=1)
    strength = np.ones(len(wins))
    for _ in range(_MAX_STEPS):
        new = won / (n / (strength[:, None] + strength)).sum(axis=1)
        new /= np.exp(np.log(new).mean())
        if np.max(np.abs(np.log(new / strength))) < _TOLERANCE:
            strength = new
            break
        strength = new
    logs: FloatArray = np.log(strength)
    return logs


def joined(duels: Sequence[Duel]) -> list[set[str]]:
    """The systems in groups whose members were compared, directly or through others.

    >>> [sorted(group) for group in joined([Duel("1", "a", "b", 1.0), Duel("1", "c", "d", 0.0)])]
    [['a', 'b'], ['c', 'd']]
    """
    groups: list[set[str]] = []
    for first, second in dict.fromkeys((duel.first, duel.second) for duel in duels):
        touched = [group for group in groups if first in group or second in group]
        groups = [group for group in groups if group not in touched]
        groups.append({first, second}.union(*touched))
    return groups
