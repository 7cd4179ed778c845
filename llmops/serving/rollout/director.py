"""Carries rollouts out: from a request in the ledger to traffic, up its steps, and back to none.

Traffic comes last and goes first. A rollout's models are verified, loaded, listed by the engine, proved and warmed up
before the table gives them a share; when it ends the share goes at once, and a model that was loaded for it alone is
unloaded after its last request. Every change of the table is an event of the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmops.capture import ServedVotes
from llmops.errors import LlmopsError, ReleaseRefused
from llmops.ledger import Event
from llmops.records import Rollout, RolloutEvidence
from llmops.registry.adapters import Registry
from llmops.registry.names import NameState
from llmops.registry.rollout_requests import verify_rollout
from llmops.registry.rollouts import SPLITTING, RolloutState, over_because
from llmops.schema import JsonDict
from llmops.serving.engines import Engines
from llmops.serving.fleet import Weight
from llmops.serving.rollout.controller import Controller
from llmops.serving.rollout.models import Models
from llmops.serving.rollout.plan import NO_PLAN, Plan, with_rollout
from llmops.serving.routes import Live
from llmops.serving.target import Target
from llmops.settings import now

CHECK_S = 1.0

log = logging.getLogger("llmops.serving")


@dataclass(frozen=True)
class Place:
    """What a director works with and shares with control: `moving` is held while the table and the ledger change."""

    registry: Registry
    keeper: Engines
    live: Live
    moving: asyncio.Lock
    state_of: Callable[[str], NameState]
    weight: Weight
    require_chain: Callable[[], None]  # raises while the ledger cannot be trusted


class Director:
    """The rollouts of one gateway."""

    def __init__(self, place: Place) -> None:
        """Direct nothing yet."""
        self.controller = Controller(place.live.meter)
        self.controller.source = ServedVotes(place.registry.ledger.engine)
        self._place = place
        self._models = Models(place.registry, place.keeper, place.weight)
        self._states: dict[str, RolloutState] = {}  # those that run, by digest
        self._targets: dict[str, tuple[Target, ...]] = {}  # of those that hold, in this engine session
        self._problems: dict[str, str] = {}  # why others have no traffic
        # Those that have no traffic any more and that the ledger is still to be told of: why, on which evidence.
        self._halted: dict[str, tuple[str, RolloutEvidence | None]] = {}

    # ------------------------------------------------------------ what is in force

    def take_over(self, states: tuple[RolloutState, ...]) -> None:
        """Take over what the ledger says runs; `restore` makes it so."""
        self._states = {state.digest: state for state in states}

    async def restore(self) -> None:
        """Give every rollout its share again on a new engine session, or note why it has none.

        The caller holds the lock on moves, and has routed the champions.
        """
        self._targets, self._problems = {}, {}
        for state in list(self._states.values()):
            rollout = state.rollout
            try:
                await self._verify(rollout)
                self._targets[state.digest] = await self._models.load_now(rollout)
            except LlmopsError as error:
                log.error("rollout of %s (%s) has no traffic: %s", rollout.public_name, rollout.kind, error)
                self._problems[state.digest] = str(error)
            if rollout.kind == "canary":
                self.controller.begin(state)
        for name in {state.rollout.public_name for state in self._states.values()}:
            self._route(name)

    def needs(self, model: str) -> bool:
        """Whether a model (digest) has traffic by a rollout, or is about to."""
        used = any(arm.model == model for state in self._states.values() for arm in state.rollout.arms)
        return used or self._models.wants(model)

    def plan(self, name: str, champion: str) -> Plan:
        """What the rollouts of a name come to once it stands for `champion`."""
        plan = NO_PLAN
        for digest, targets in self._targets.items():
            state = self._states[digest]
            if state.rollout.public_name != name or digest in self._halted:
                continue
            if over_because(state.rollout, champion) is None:
                plan = with_rollout(plan, state, targets)
        return plan

    def released(self, name: str, champion: str) -> None:
        """Let go of the rollouts that ended because a name moved; its route has been changed already."""
        for state in list(self._states.values()):
            over = over_because(state.rollout, champion)
            if state.rollout.public_name == name and over is not None:
                log.info("rollout of %s (%s) is over: %s", name, state.rollout.kind, over)
                self._forget(state)

    def status(self, name: str) -> list[JsonDict]:
        """What runs under a name, for `/llmops/status`."""
        return [self._status(s) for s in self._states.values() if s.rollout.public_name == name]

    # ------------------------------------------------------------ requests

    async def settle(self, event: Event) -> None:
        """Carry out a request to begin a rollout or to abort one; the ledger gets the answer."""
        name, digest = str(event.body["public_name"]), str(event.body["rollout"])
        if event.kind == "rollout.abort_requested":
            state = self._states.get(digest)
            if state is not None:  # it may have ended by itself since
                await self._end(state, str(event.body["reason"]), None)
            return
        rollout = None
        try:
            rollout = await asyncio.to_thread(self._place.registry.store.get_record, Rollout, digest)
            await self._verify(rollout)
            await self._begin(rollout, event)
        except LlmopsError as error:
            log.warning("rollout of %s refused: %s", name, error)
            body = {"public_name": name, "rollout": digest, "reason": str(error)}
            await asyncio.to_thread(self._place.registry.ledger.append, "rollout.refused", body)
            if rollout is not None:
                self._models.release(rollout)  # what was loaded before another of its models failed

    async def _begin(self, rollout: Rollout, event: Event) -> None:
        place, name, digest = self._place, rollout.public_name, str(event.body["rollout"])
        state = RolloutState(rollout, digest, "running", since=now())
        if any(s.slot == state.slot and s.rollout.public_name == name for s in self._states.values()):
            raise ReleaseRefused(f"rollout {name}: another {state.slot} rollout runs; end it first")
        while True:
            targets = await self._models.load(rollout)
            async with place.moving:
                if not self._models.are_here(targets):
                    continue  # the engine was replaced, or the slot retired, while this waited
                champion = place.state_of(name).champion_adapter
                if champion is None or (rollout.kind in SPLITTING and champion != rollout.champion):
                    raise ReleaseRefused(f"rollout {name}: the champion changed meanwhile; ask again")
                self._states[digest], self._targets[digest] = state, targets
                before = place.live.table
                self._route(name, moved=True)
                body = {"public_name": name, "rollout": digest, "share": state.share}
                try:
                    told = await self._tell("rollout.started", body)
                except Exception:
                    del self._states[digest], self._targets[digest]
                    place.live.table = place.live.table.with_names_of(before)
                    raise
                self._states[digest] = state = replace(state, since=told.at, started_at=told.at)
                if rollout.kind == "canary":
                    self.controller.begin(state)
            log.info("rollout of %s (%s) has begun", name, rollout.kind)
            return

    async def _verify(self, rollout: Rollout) -> None:
        place = self._place
        place.require_chain()
        state, engine = place.state_of(rollout.public_name), place.keeper.fleet.session.signature
        await asyncio.to_thread(verify_rollout, place.registry, rollout, state, engine)

    # ------------------------------------------------------------ steps and ends

    async def watch(self) -> None:
        """Let the controller look at every canary once a second, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            for state in list(self._states.values()):
                try:
                    await self._check(state)
                except Exception:  # a full disk or a locked database must not end the loop
                    log.exception(
                        "rollout of %s: could not be judged; trying again", state.rollout.public_name
                    )

    async def _check(self, state: RolloutState) -> None:
        if state.digest in self._halted:
            await self._end(state, *self._halted[state.digest])
            return
        if state.rollout.kind != "canary" or state.digest not in self._targets:
            return
        found = await self.controller.judge(state)
        if found is None or self._states.get(state.digest) is not state:
            return
        judgement, evidence = found
        if judgement.action == "abort":
            self._halted[state.digest] = (judgement.reason, evidence)
            self._route(state.rollout.public_name)  # before anything that can wait or fail
            await self._end(state, judgement.reason, evidence)
        else:
            await self._raise(state, evidence)

    async def _raise(self, state: RolloutState, evidence: RolloutEvidence) -> None:
        """Go up a step, or note that the last one held."""
        place, name = self._place, state.rollout.public_name
        body = {
            "public_name": name,
            "rollout": state.digest,
            "evidence": await asyncio.to_thread(place.registry.store.put_record, evidence),
        }
        async with place.moving:
            if self._states.get(state.digest) is not state:
                return  # aborted or promoted meanwhile
            if evidence.action == "ready":
                await asyncio.to_thread(place.registry.ledger.append, "rollout.ready", body)
                self._states[state.digest] = replace(state, ready=True)
                log.info("rollout of %s is ready to be promoted: %s", name, evidence.reason)
                return
            before, next_step = place.live.table, replace(state, step=state.step + 1)
            self._states[state.digest] = next_step
            self._route(name, moved=True)
            try:
                told = await self._tell(
                    "rollout.stepped", {**body, "step": next_step.step, "share": next_step.share}
                )
            except Exception:
                self._states[state.digest] = state
                place.live.table = place.live.table.with_names_of(before)
                raise
            self._states[state.digest] = replace(next_step, since=told.at)
            self.controller.begin(self._states[state.digest])
        log.info("rollout of %s goes up to %g: %s", name, next_step.share, evidence.reason)

    async def _end(self, state: RolloutState, reason: str, evidence: RolloutEvidence | None) -> None:
        """Take a rollout's traffic away, then tell the ledger; told later if the ledger cannot be written now."""
        place, name = self._place, state.rollout.public_name
        async with place.moving:
            if state.digest not in self._states:
                return
            self._halted[state.digest] = (reason, evidence)
            self._route(name)
            body: JsonDict = {"public_name": name, "rollout": state.digest, "reason": reason}
            if evidence is not None:
                body["evidence"] = await asyncio.to_thread(place.registry.store.put_record, evidence)
            await self._tell("rollout.aborted", body, ahead=1)
            place.live.table = place.live.table.with_version(place.live.table.version + 1)
            self._forget(state)
        log.warning("rollout of %s (%s) is aborted: %s", name, state.rollout.kind, reason)

    async def _tell(self, kind: str, body: JsonDict, ahead: int = 0) -> Event:
        version = self._place.live.table.version + ahead
        append = self._place.registry.ledger.append
        return await asyncio.to_thread(append, kind, {**body, "route_version": version})  # type: ignore[arg-type]

    def _forget(self, state: RolloutState) -> None:
        del self._states[state.digest]
        self._targets.pop(state.digest, None)
        self._problems.pop(state.digest, None)
        self._halted.pop(state.digest, None)
        self.controller.end(state)
        self._models.release(state.rollout)

    def _route(self, name: str, moved: bool = False) -> None:
        """Put the name's rollouts, as they are now, into the table."""
        table = self._place.live.table
        route = table.names.get(name)
        if route is None:
            return
        route = replace(route, plan=self.plan(name, route.adapter))
        self._place.live.table = table.moved(route) if moved else table.with_route(route)

    def _status(self, state: RolloutState) -> JsonDict:
        rollout, watched = state.rollout, self.controller.watched(state)
        counts = self._place.live.meter.counts(rollout.public_name) if watched else {}
        slow_ms = rollout.slo.ttft_p95_ms if rollout.slo else None
        return {
            "rollout": state.digest, "kind": rollout.kind, "step": state.step, "share": state.share,
            "ready": state.ready, "problem": self._problems.get(state.digest),
            "arms": [{"name": arm.name, "model": arm.model} for arm in rollout.arms],
            "window": [vars(count.figures(arm, slow_ms)) for arm, count in counts.items()],
            "n_comparisons": watched.n_comparisons if watched else 0,
            "votes": vars(watched.votes) if watched and watched.votes else None,
        }  # fmt: skip
