"""What live votes and live figures say about a canary: pure functions, declared rules in, a judgement out.

Votes become comparisons of the canary with the champion, in the order they came. A vote between two answers is one by
itself; votes on single answers are paired off, the canary's first with the champion's first and so on, so that both
sides weigh the same and drift over the day falls out. At a declared look exactly so many comparisons count. Users are
clusters on either side: one who votes a hundred times is still one person.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmops.records import CHAMPION, ArmFigures, LiveVote, Rollout, RolloutArm, SloRule, VoteFigures, VoteRule

EVEN = 0.5
SLOW_SHARE = 0.05
"""The share of streams that may begin later than the 95th percentile's limit."""
BREACH_LEVEL = 0.99
"""Confidence that a share is over its limit before a window counts as breached."""

Held = Literal["held", "breached", "open"]
"""What a window says: within the limit, over it beyond chance and worse than the champion, or neither."""


@dataclass(frozen=True)
class Comparison:
    """One comparison: 1 the canary won, 0 it lost, 0.5 a tie; and whose votes it was made from."""

    worth: float
    canary_rater: str
    champion_rater: str


@dataclass(frozen=True)
class Judgement:
    """What is to be done, and why."""

    action: Literal["raise", "ready", "abort"]
    reason: str


def comparisons(votes: Sequence[LiveVote], canary: str, champion: str) -> list[Comparison]:
    """Comparisons of two models (digests) from votes in their order; votes about others are left out.

    >>> votes = [LiveVote(1, "c", 1.0, "ann"), LiveVote(2, "h", 0.0, "bob"), LiveVote(3, "h", 0.0, "cid", "c")]
    >>> [found.worth for found in comparisons(votes, "c", "h")]
    [1.0, 1.0]
    """
    waiting: dict[str, deque[LiveVote]] = {canary: deque(), champion: deque()}
    found = []
    for vote in votes:
        rater = _rater(vote)
        if vote.against is not None:
            if {vote.model, vote.against} == {canary, champion}:
                worth = vote.worth if vote.model == canary else 1 - vote.worth
                found.append(Comparison(_sign(worth - EVEN), rater, rater))
        elif vote.model in waiting:
            waiting[vote.model].append(vote)
            if all(waiting.values()):
                ours, theirs = waiting[canary].popleft(), waiting[champion].popleft()
                found.append(Comparison(_sign(ours.worth - theirs.worth), _rater(ours), _rater(theirs)))
    return found


def _rater(vote: LiveVote) -> str:
    return vote.rater if vote.rater is not None else f"#{vote.number}"


def _sign(difference: float) -> float:
    return EVEN if difference == 0 else float(difference > 0)


def look_at(rule: VoteRule, found: Sequence[Comparison]) -> VoteFigures | None:
    """The newest declared look that the comparisons reach; None before the first."""
    from llmops import stats

    reached = [k for k, n in enumerate(rule.looks) if n <= len(found)]
    if not reached:
        return None
    look = reached[-1]
    counted = found[: rule.looks[look]]
    shares = [n / rule.looks[-1] for n in rule.looks]
    level = stats.look_level(shares, look + 1, rule.alpha)
    worth = [c.worth for c in counted]
    rate = stats.win_rate(
        worth, level, [c.champion_rater for c in counted], [c.canary_rater for c in counted]
    )
    verdict = stats.decide_bound(rate.shifted(-EVEN), -rule.margin)
    doubt = f"; in doubt: {rate.doubt}" if rate.doubt else ""
    return VoteFigures(
        look=look, n_votes=len(counted), n_wins=worth.count(1.0), n_losses=worth.count(0.0), win_rate=rate.estimate,
        low=rate.low, high=rate.high, level=level, threshold=EVEN - rule.margin, verdict=verdict,
        method=f"{rate.method}{doubt}",
    )  # fmt: skip


# ---------------------------------------------------------------- figures


def errors_held(rule: SloRule, canary: ArmFigures, champion: ArmFigures) -> Held | None:
    """What a window says of failures; None while one of the two has had too few requests."""
    counts = (canary.n_errors, canary.n_requests), (champion.n_errors, champion.n_requests)
    return _held(counts, rule.max_error_share, rule.min_requests)


def waits_held(rule: SloRule, canary: ArmFigures, champion: ArmFigures) -> Held | None:
    """What a window says of times to the first token; None while one of the two has had too few streams."""
    counts = (canary.n_slow, canary.n_streams), (champion.n_slow, champion.n_streams)
    return _held(counts, SLOW_SHARE, rule.min_requests)


def _held(counts: tuple[tuple[int, int], tuple[int, int]], allowed: float, least: int) -> Held | None:
    from llmops import stats

    (n_bad, n), (n_bad_champion, n_champion) = counts
    if min(n, n_champion) < least:
        return None
    if n_bad / n <= allowed:
        return "held"
    beyond_chance = stats.proportion_interval([1] * n_bad + [0] * (n - n_bad), BREACH_LEVEL).low > allowed
    return "breached" if beyond_chance and n_bad / n > n_bad_champion / n_champion else "open"


def judge_votes(rollout: Rollout, step: int, votes: VoteFigures | None) -> Judgement | None:
    """What the votes ask for at a step (from 0): to abort, to go up (or to be ready), or nothing yet.

    A step is left upwards at the look of its own place, or a later one.
    """
    if votes is None:
        return None
    said = (
        f"win rate {100 * votes.win_rate:.1f} % [{100 * votes.low:.1f}, {100 * votes.high:.1f}] after {votes.n_votes} "
        f"comparisons, to be over {100 * votes.threshold:.1f} %"
    )
    if votes.verdict == "FAIL":
        return Judgement("abort", f"votes: {said}")
    if votes.verdict != "PASS" or votes.look < step:
        return None
    return Judgement("ready" if step == len(rollout.steps) - 1 else "raise", said)


def breach_in_words(rule: SloRule, canary: ArmFigures, champion: ArmFigures, of_waits: bool) -> str:
    """Why a window is breached."""
    if of_waits:
        shown = [f"{100 * f.n_slow / f.n_streams:.1f} % of {f.n_streams}" for f in (canary, champion)]
        limit = f"5 % may take over {rule.ttft_p95_ms:g} ms"
        return f"time to first token: {shown[0]} streams were slow, {shown[1]} under the champion; {limit}"
    shown = [f"{100 * f.n_errors / f.n_requests:.1f} % of {f.n_requests}" for f in (canary, champion)]
    limit = f"{100 * rule.max_error_share:g} % may fail"
    return f"errors: {shown[0]} requests failed, {shown[1]} under the champion; {limit}"


def canary_of(rollout: Rollout) -> RolloutArm:
    """The one arm of a canary."""
    return rollout.arms[0]


def sides(counts: dict[str, ArmFigures], rollout: Rollout) -> tuple[ArmFigures, ArmFigures]:
    """The figures of canary and champion."""
    return counts[canary_of(rollout).name], counts[CHAMPION]
