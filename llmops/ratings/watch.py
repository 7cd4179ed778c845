"""How each rater works: pace, time on an item, side bias, gold items, repeats. Pure functions over rating rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median, quantiles

from llmops.ratings.outcomes import vote_of
from llmops.ratings.raters import is_imported
from llmops.records import Item, Rating

PAUSE_S = 300.0
"""Between two answers that lie further apart somebody did something else; such time is not counted as work."""
LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, as a fraction with its exact 95 % interval (Clopper and Pearson); None of nothing."""

    n: int
    hits: int
    frac: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RaterInsight:
    """One rater. `per_hour` is the pace while at work; `dwell_s` the median time from showing an item to its answer.

    `dwell_spread_s` are the shortest such time, the quartiles, and the longest.
    """

    rater: str
    is_imported: bool
    withdrawn: bool
    n_answers: int
    n_skips: int
    per_hour: float | None
    dwell_s: float | None
    dwell_spread_s: tuple[float, float, float, float, float] | None
    left: Share
    gold: Share
    repeats: Share
    first_at: str
    last_at: str


@dataclass(frozen=True)
class Watched:
    """What is looked at: live answers and skips, all items by digest, when each showing was drawn, who withdrew."""

    answers: Sequence[Rating]
    skipped: Sequence[Rating]
    items: Mapping[str, Item]
    first_shown: Mapping[str, str]
    withdrawn: frozenset[str]


def rater_insights(watched: Watched) -> list[RaterInsight]:
    """Each rater who answered or skipped, those with the most answers first."""
    mine: dict[str, list[Rating]] = defaultdict(list)
    for row in (*watched.answers, *watched.skipped):
        mine[row.rater].append(row)
    found = [_insight(rater, rows, watched) for rater, rows in mine.items()]
    return sorted(found, key=lambda person: (-person.n_answers, person.rater))


def share(hits: Sequence[bool]) -> Share:
    """How many of these hold.

    >>> share([True, False, False, False]).frac, round(share([True, False, False, False]).high, 3)
    (0.25, 0.806)
    """
    n, k = len(hits), sum(hits)
    if n == 0:
        return Share(0, 0, None, None, None)
    from scipy import special

    tail = (1 - LEVEL) / 2
    low = float(special.betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Share(n, k, k / n, low, high)


def is_as_known(row: Rating, item: Item) -> bool:
    """Whether a rating of a gold item says what is known of it: the vote, or every score that is known."""
    if item.known is None:
        return False
    if row.scores:
        return all(row.scores.get(name) == value for name, value in json.loads(item.known).items())
    return (vote_of(row) or row.choice) == item.known


def _insight(rater: str, rows: Sequence[Rating], watched: Watched) -> RaterInsight:
    rows = sorted(rows, key=lambda r: r.number)
    answers = [row for row in rows if row.choice != "skip"]
    imported = is_imported(rater)
    sided = [row.choice == "left" for row in answers if row.preferred is not None and not imported]
    known = [
        (row, item) for row in answers if (item := watched.items.get(row.item)) and item.known is not None
    ]
    dwells = [s for row in answers if (s := _dwell_s(row, watched.first_shown.get(row.showing))) is not None]
    return RaterInsight(
        rater=rater,
        is_imported=imported,
        withdrawn=rater in watched.withdrawn,
        n_answers=len(answers),
        n_skips=len(rows) - len(answers),
        per_hour=None if imported else pace([row.at for row in rows]),
        dwell_s=median(dwells) if dwells and not imported else None,
        dwell_spread_s=_spread(dwells) if dwells and not imported else None,
        left=share(sided),
        gold=share([is_as_known(row, item) for row, item in known]),
        repeats=share(_repeated(answers, watched.items)),
        first_at=rows[0].at,
        last_at=rows[-1].at,
    )


def _spread(times: list[float]) -> tuple[float, float, float, float, float]:
    lower, middle, upper = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return min(times), lower, middle, upper, max(times)


def pace(times: Sequence[str]) -> float | None:
    """Answers an hour of work, from their times, oldest first; None where no two lie close together.

    >>> pace(["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:30.000Z", "2026-01-01T09:00:00.000Z"])
    120.0
    """
    at = [seconds(time) for time in times]
    gaps = [b - a for a, b in pairwise(at) if b - a <= PAUSE_S]
    return 3600 * len(gaps) / sum(gaps) if sum(gaps) > 0 else None


def seconds(at: str) -> float:
    """A record's time as seconds since 1970."""
    return datetime.fromisoformat(at).timestamp()


def _dwell_s(row: Rating, shown_at: str | None) -> float | None:
    """What the page measured, else the time since the item was first shown."""
    if row.dwell_ms is not None:
        return row.dwell_ms / 1000
    return seconds(row.at) - seconds(shown_at) if shown_at else None


def _repeated(answers: Sequence[Rating], items: Mapping[str, Item]) -> list[bool]:
    """Of each repeat that was answered, whether the answer is the same as the first time."""
    by_item = {row.item: row for row in answers}
    found = []
    for row in answers:
        item = items.get(row.item)
        first = by_item.get(item.repeat_of) if item and item.repeat_of else None
        if first is not None:
            found.append((vote_of(first), first.scores) == (vote_of(row), row.scores))
    return found
