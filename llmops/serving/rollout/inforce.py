"""The rollouts that have traffic at one gateway, and how they come into its route table.

Shared by whoever decides about them (`director`) and whoever takes over what another gateway decided (`follower`). The
caller of what changes the table holds the lock on moves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llmops.capture import ServedVotes
from llmops.errors import LlmopsError
from llmops.ledger import Event, EventKind
from llmops.records import Rollout, RolloutEvidence
from llmops.registry.adapters import Registry
from llmops.registry.names import NameState
from llmops.registry.rollout_requests import verify_rollout
from llmops.registry.rollouts import RolloutState, over_because
from llmops.schema import JsonDict
from llmops.serving.engines import Engines
from llmops.serving.fleet import Weight
from llmops.serving.rollout.controller import Controller
from llmops.serving.rollout.models import Models
from llmops.serving.rollout.plan import NO_PLAN, Plan, with_rollout
from llmops.serving.routes import Live, RouteTable
from llmops.serving.target import Target

log = logging.getLogger("llmops.serving")


@dataclass(frozen=True)
class Place:
    """What rollouts work with and share with control: `moving` is held while the table and the ledger change.

    `tell` writes an event, `tell_all` several or none, that only the gateway that leads may write (`seat.NotLeading`
    otherwise), in a thread. `count_others`, in a thread, counts the other gateways on the database.
    """

    registry: Registry
    keeper: Engines
    live: Live
    moving: asyncio.Lock
    state_of: Callable[[str], NameState]
    weight: Weight
    require_chain: Callable[[], None]  # raises while the ledger cannot be trusted
    leads: Callable[[], bool]
    tell: Callable[[EventKind, JsonDict], Event]
    tell_all: Callable[[Sequence[tuple[EventKind, JsonDict]]], list[Event]]
    count_others: Callable[[], int]


class InForce:
    """The rollouts of one gateway."""

    def __init__(self, place: Place) -> None:
        """Begin with none."""
        self.controller = Controller(place.live.meter)
        self.controller.source = ServedVotes(place.registry.ledger.engine)
        self.place = place
        self.models = Models(place.registry, place.keeper, place.weight)
        self.states: dict[str, RolloutState] = {}  # those that run, by digest
        self.targets: dict[str, tuple[Target, ...]] = {}  # of those that hold, in this engine session
        self.problems: dict[str, str] = {}  # why others have no traffic
        # Those that have no traffic any more while the ledger does not say so yet, or this gateway has not come to
        # where it says so: why, on which evidence.
        self.halted: dict[str, tuple[str, RolloutEvidence | None]] = {}

    def take_over(self, states: tuple[RolloutState, ...]) -> None:
        """Take over what the ledger says runs; `restore` makes it so."""
        self.states = {state.digest: state for state in states}

    async def restore(self) -> None:
        """Give every rollout its share again on a new engine session, or note why it has none.

        The caller has routed the champions.
        """
        self.targets, self.problems = {}, {}
        for state in list(self.states.values()):
            try:
                await self.verify(state.rollout)
                self.targets[state.digest] = await self.models.load_now(state.rollout)
            except LlmopsError as error:
                self.without_traffic(state, error)
            self.watch(state)
        for name in {state.rollout.public_name for state in self.states.values()}:
            self.route(name)

    async def verify(self, rollout: Rollout) -> None:
        """Check everything that a rollout stands on.

        Raises:
            LlmopsError: see `verify_rollout`; or the ledger cannot be trusted, or there is no engine.
        """
        place = self.place
        place.require_chain()
        state, engine = place.state_of(rollout.public_name), place.keeper.fleet.session.signature
        await asyncio.to_thread(verify_rollout, place.registry, rollout, state, engine)

    def without_traffic(self, state: RolloutState, error: LlmopsError) -> None:
        """Note why a rollout that is in force has no traffic here."""
        rollout = state.rollout
        log.error("rollout of %s (%s) has no traffic: %s", rollout.public_name, rollout.kind, error)
        self.problems[state.digest] = str(error)

    def watch(self, state: RolloutState) -> None:
        """Count what a canary does at its present step, from now on."""
        if state.rollout.kind == "canary":
            self.controller.begin(state)

    def needs(self, model: str) -> bool:
        """Whether a model (digest) has traffic by a rollout, or is about to."""
        used = any(arm.model == model for state in self.states.values() for arm in state.rollout.arms)
        return used or self.models.wants(model)

    def plan(self, name: str, champion: str) -> Plan:
        """What the rollouts of a name come to once it stands for `champion`."""
        plan = NO_PLAN
        for digest, targets in self.targets.items():
            state = self.states[digest]
            if state.rollout.public_name != name or digest in self.halted:
                continue
            if over_because(state.rollout, champion) is None:
                plan = with_rollout(plan, state, targets)
        return plan

    def released(self, name: str, champion: str) -> None:
        """Let go of the rollouts that ended because a name moved; its route has been changed already."""
        for state in list(self.states.values()):
            over = over_because(state.rollout, champion)
            if state.rollout.public_name == name and over is not None:
                log.info("rollout of %s (%s) is over: %s", name, state.rollout.kind, over)
                self.forget(state)

    def forget(self, state: RolloutState) -> None:
        """Let go of a rollout that has no traffic any more."""
        self.states.pop(state.digest, None)
        self.targets.pop(state.digest, None)
        self.problems.pop(state.digest, None)
        self.halted.pop(state.digest, None)
        self.controller.end(state)
        self.models.release(state.rollout)

    def halt(self, digest: str, reason: str, evidence: RolloutEvidence | None = None) -> None:
        """Take a rollout's traffic away, before anything that can wait or fail; also of one that is still to begin."""
        self.halted[digest] = (reason, evidence)
        state = self.states.get(digest)
        if state is not None:
            self.route(state.rollout.public_name)

    def resume(self) -> None:
        """Give rollouts their traffic again whose end was about to be decided here: another gateway decides now."""
        for digest in list(self.halted):
            del self.halted[digest]
            state = self.states.get(digest)
            if state is not None:
                self.route(state.rollout.public_name)

    def route(self, name: str) -> None:
        """Put the name's rollouts, as they are now, into the table; its version stays."""
        self.place.live.table = self._routed(name)

    def move(self, name: str) -> RouteTable:
        """Put the name's rollouts into the next version of the table; gives the table before."""
        before = self.place.live.table
        self.place.live.table = self._routed(name).with_version(before.version + 1)
        return before

    def _routed(self, name: str) -> RouteTable:
        table = self.place.live.table
        route = table.names.get(name)
        if route is None:
            return table
        return table.with_route(replace(route, plan=self.plan(name, route.adapter)))

    # ------------------------------------------------------------ for people

    def status(self, name: str) -> list[JsonDict]:
        """What runs under a name, for `/llmops/status`."""
        return [self._status(s) for s in self.states.values() if s.rollout.public_name == name]

    def _status(self, state: RolloutState) -> JsonDict:
        rollout, watched = state.rollout, self.controller.watched(state)
        counts = self.place.live.meter.counts(rollout.public_name) if watched else {}
        slow_ms = rollout.slo.ttft_p95_ms if rollout.slo else None
        return {
            "rollout": state.digest, "kind": rollout.kind, "step": state.step, "share": state.share,
            "ready": state.ready, "problem": self.problems.get(state.digest),
            "arms": [{"name": arm.name, "model": arm.model} for arm in rollout.arms],
            "window": [vars(count.figures(arm, slow_ms)) for arm, count in counts.items()],
            "n_comparisons": watched.n_comparisons if watched else 0,
            "votes": vars(watched.votes) if watched and watched.votes else None,
        }  # fmt: skip
