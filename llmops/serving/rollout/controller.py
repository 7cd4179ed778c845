"""The canary's controller: looks at live votes and figures once a second and says when its share goes up or ends.

It goes up only when the declared look of the votes passes and the newest window of every declared figure held. It
aborts when a look fails or a window is breached. What is missing - votes, requests, streams, a source of votes - does
neither.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from llmops.errors import LlmopsError
from llmops.records import ArmFigures, LiveVotes, RolloutEvidence, SloRule, VoteFigures
from llmops.registry.rollouts import RolloutState
from llmops.serving.rollout.meter import Meter
from llmops.serving.rollout.verdict import (
    Held,
    Judgement,
    breach_in_words,
    canary_of,
    comparisons,
    errors_held,
    judge_votes,
    look_at,
    sides,
    waits_held,
)
from llmops.settings import now

log = logging.getLogger("llmops.serving")


@dataclass
class Watched:
    """What is known of one canary at its present step."""

    errors: Held | None = None
    waits: Held | None = None
    error_figures: tuple[ArmFigures, ...] = ()
    wait_figures: tuple[ArmFigures, ...] = ()
    votes: VoteFigures | None = None
    n_comparisons: int = 0

    def figures(self) -> tuple[ArmFigures, ...]:
        """The newest whole windows of both kinds, by arm."""
        found = {f.arm: f for f in self.error_figures}
        for f in self.wait_figures:
            of_errors = found.get(f.arm, replace(f, n_requests=0, n_errors=0))
            found[f.arm] = replace(f, n_requests=of_errors.n_requests, n_errors=of_errors.n_errors)
        return tuple(found.values())


class Controller:
    """Judges canaries; acts on nothing itself. Set `source` to the votes of live users."""

    def __init__(self, meter: Meter) -> None:
        """Judge by the counts in `meter`."""
        self.source: LiveVotes | None = None
        self._meter = meter
        self._watched: dict[str, Watched] = {}

    def begin(self, state: RolloutState) -> None:
        """Begin a canary's step: its windows start anew."""
        self._meter.watch(state.rollout.public_name, (canary_of(state.rollout).name,))
        self._watched[state.digest] = Watched()

    def end(self, state: RolloutState) -> None:
        """Watch a canary no longer."""
        if self._watched.pop(state.digest, None) is not None:
            self._meter.forget(state.rollout.public_name)

    def watched(self, state: RolloutState) -> Watched | None:
        """What is known of a canary."""
        return self._watched.get(state.digest)

    async def judge(self, state: RolloutState) -> tuple[Judgement, RolloutEvidence] | None:
        """What is to be done about a canary now, with the evidence for it; None: nothing."""
        watched = self._watched.get(state.digest)
        if watched is None:
            return None
        found = self._breach(state, watched)
        if found is None:
            await self._look(state, watched)
            found = self._by_votes(state, watched)
        if found is None:
            return None
        evidence = RolloutEvidence(
            rollout=state.digest, step=state.step, action=found.action, reason=found.reason, votes=watched.votes,
            arms=watched.figures(), created_at=now(),
        )  # fmt: skip
        return found, evidence

    def _breach(self, state: RolloutState, watched: Watched) -> Judgement | None:
        """Take in the windows that have come to their end."""
        rule, name = state.rollout.slo, state.rollout.public_name
        if rule is None:
            return None
        counts = self._meter.counts(name)
        figures = {arm: count.figures(arm, rule.ttft_p95_ms) for arm, count in counts.items()}
        canary, champion = sides(figures, state.rollout)
        errors = errors_held(rule, canary, champion)
        if errors is not None:
            watched.errors, watched.error_figures = errors, (canary, champion)
            self._meter.end_errors(name)
        waits = None if rule.ttft_p95_ms is None else waits_held(rule, canary, champion)
        if waits is not None:
            watched.waits, watched.wait_figures = waits, (canary, champion)
            self._meter.end_waits(name)
        if "breached" not in (errors, waits):
            return None
        return Judgement("abort", breach_in_words(rule, canary, champion, of_waits=errors != "breached"))

    async def _look(self, state: RolloutState, watched: Watched) -> None:
        """Read the votes and look at them, if a look is declared for so many."""
        rollout = state.rollout
        if rollout.votes is None or self.source is None:
            return
        try:
            votes = await asyncio.to_thread(self.source.votes, rollout.public_name, state.started_at)
        except LlmopsError as error:
            log.warning("rollout of %s: live votes cannot be read: %s", rollout.public_name, error)
            return
        found = comparisons(votes, canary_of(rollout).model, rollout.champion)
        watched.n_comparisons = len(found)
        watched.votes = look_at(rollout.votes, found)

    def _by_votes(self, state: RolloutState, watched: Watched) -> Judgement | None:
        found = judge_votes(state.rollout, state.step, watched.votes)
        if found is None or found.action == "abort":
            return found
        if not _held(state.rollout.slo, watched) or (found.action == "ready" and state.ready):
            return None
        return found


def _held(rule: SloRule | None, watched: Watched) -> bool:
    """Whether the newest window of every declared figure held."""
    if rule is None:
        return True
    return watched.errors == "held" and (rule.ttft_p95_ms is None or watched.waits == "held")
