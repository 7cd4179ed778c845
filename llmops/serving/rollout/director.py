"""Carries rollouts out at the gateway that leads: from a request in the ledger to traffic, up its steps, and to none.

Traffic comes last and goes first. A rollout's models are verified, loaded, listed by the engine, proved and warmed up
before the table gives them a share; when it ends the share goes at once, and a model that was loaded for it alone is
unloaded after its last request. Every change of the table is an event of the ledger. A gateway that follows counts what
its arms do and tells the leader.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from llmops.errors import LlmopsError, ReleaseRefused
from llmops.ledger import Event, EventKind
from llmops.records import Rollout, RolloutEvidence
from llmops.registry.rollouts import SPLITTING, RolloutState
from llmops.schema import JsonDict
from llmops.serving.rollout.controller import Controller
from llmops.serving.rollout.inforce import InForce
from llmops.serving.rollout.tally import Told, collect, taken, tell
from llmops.serving.seat import NotLeading
from llmops.settings import now

CHECK_S = 1.0

log = logging.getLogger("llmops.serving")


class Director:
    """Decides about the rollouts in force while its gateway leads."""

    def __init__(self, force: InForce) -> None:
        """Direct what is in force."""
        self._force = force
        self._place = force.place

    @property
    def controller(self) -> Controller:
        """What judges the canaries."""
        return self._force.controller

    def status(self, name: str) -> list[JsonDict]:
        """What runs under a name, for `/llmops/status`."""
        return self._force.status(name)

    # ------------------------------------------------------------ requests

    async def settle(self, event: Event) -> None:
        """Carry out a request to begin a rollout or to abort one; the ledger gets the answer.

        Raises:
            NotLeading: another gateway leads meanwhile, and answers it.
        """
        name, digest = str(event.body["public_name"]), str(event.body["rollout"])
        if event.kind == "rollout.abort_requested":
            state = self._force.states.get(digest)
            if state is not None:  # it may have ended by itself since
                await self._end(state, str(event.body["reason"]), None)
            return
        rollout = None
        try:
            rollout = await asyncio.to_thread(self._place.registry.store.get_record, Rollout, digest)
            await self._force.verify(rollout)
            await self._begin(rollout, event)
        except NotLeading:
            raise
        except LlmopsError as error:
            log.warning("rollout of %s refused: %s", name, error)
            body = {"public_name": name, "rollout": digest, "reason": str(error)}
            await asyncio.to_thread(self._place.tell, "rollout.refused", body)
            if rollout is not None:
                self._force.models.release(rollout)  # what was loaded before another of its models failed

    async def _begin(self, rollout: Rollout, event: Event) -> None:
        force, place = self._force, self._place
        name, digest = rollout.public_name, str(event.body["rollout"])
        state = RolloutState(rollout, digest, "running", since=now())
        if any(s.slot == state.slot and s.rollout.public_name == name for s in force.states.values()):
            raise ReleaseRefused(f"rollout {name}: another {state.slot} rollout runs; end it first")
        while True:
            targets = await force.models.load(rollout)
            async with place.moving:
                if not force.models.are_here(targets):
                    continue  # the engine was replaced, or the slot retired, while this waited
                champion = place.state_of(name).champion_adapter
                if champion is None or (rollout.kind in SPLITTING and champion != rollout.champion):
                    raise ReleaseRefused(f"rollout {name}: the champion changed meanwhile; ask again")
                force.states[digest], force.targets[digest] = state, targets
                before = force.move(name)
                body = {"public_name": name, "rollout": digest, "share": state.share}
                try:
                    told = await self._tell("rollout.started", body)
                except Exception:
                    del force.states[digest], force.targets[digest]
                    place.live.table = place.live.table.with_names_of(before)
                    raise
                force.states[digest] = state = replace(state, since=told.at, started_at=told.at)
                force.watch(state)
            log.info("rollout of %s (%s) has begun", name, rollout.kind)
            return

    # ------------------------------------------------------------ steps and ends

    async def watch(self) -> None:
        """Have every canary judged once a second, or tell the gateway that leads what it did here, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            if not self._place.leads():
                await self._tell_counts()
                continue
            await self._collect_counts()
            for state in list(self._force.states.values()):
                try:
                    await self._check(state)
                except NotLeading as error:
                    log.warning("rollout of %s: %s", state.rollout.public_name, error)
                except Exception:  # a full disk or a locked database must not end the loop
                    log.exception(
                        "rollout of %s: could not be judged; trying again", state.rollout.public_name
                    )

    def _canaries(self) -> list[RolloutState]:
        return [state for state in self._force.states.values() if state.rollout.kind == "canary"]

    async def _tell_counts(self) -> None:
        """Give what was counted here to the gateway that leads; what cannot be given now waits."""
        meter = self._place.live.meter
        told = {state.digest: (state, taken(meter, state)) for state in self._canaries()}
        rows = [one for _, counted in told.values() for one in counted]
        try:
            await asyncio.to_thread(tell, self._place.registry.ledger.engine, rows)
        except Exception as error:
            log.warning("what canaries did here could not be told to the leading gateway: %s", error)
            for state, counted in told.values():
                self._count(state, counted)

    async def _collect_counts(self) -> None:
        """Add what the gateways that follow have told; without it canaries are judged by what is known here."""
        canaries = self._canaries()
        if not canaries:
            return
        try:
            told = await asyncio.to_thread(collect, self._place.registry.ledger.engine)
        except Exception as error:
            log.warning("what canaries did at other gateways could not be read: %s", error)
            return
        for state in canaries:
            self._count(state, told)

    def _count(self, state: RolloutState, told: list[Told]) -> None:
        """Add counts to the windows of a canary's present step."""
        for one in told:
            if (one.rollout, one.step) == (state.digest, state.step):
                self._place.live.meter.add(state.rollout.public_name, one.arm, one.counted)

    async def _check(self, state: RolloutState) -> None:
        force = self._force
        if state.digest in force.halted:
            await self._end(state, *force.halted[state.digest])
            return
        if state.rollout.kind != "canary" or state.digest not in force.targets:
            return
        found = await force.controller.judge(state)
        if found is None or force.states.get(state.digest) is not state:
            return
        judgement, evidence = found
        if judgement.action == "abort":
            force.halt(state.digest, judgement.reason, evidence)
            await self._end(state, judgement.reason, evidence)
        else:
            await self._raise(state, evidence)

    async def _raise(self, state: RolloutState, evidence: RolloutEvidence) -> None:
        """Go up a step, or note that the last one held."""
        force, place, name = self._force, self._place, state.rollout.public_name
        body = {
            "public_name": name,
            "rollout": state.digest,
            "evidence": await asyncio.to_thread(place.registry.store.put_record, evidence),
        }
        async with place.moving:
            if force.states.get(state.digest) is not state:
                return  # aborted or promoted meanwhile
            if evidence.action == "ready":
                await asyncio.to_thread(place.tell, "rollout.ready", body)
                force.states[state.digest] = replace(state, ready=True)
                log.info("rollout of %s is ready to be promoted: %s", name, evidence.reason)
                return
            next_step = replace(state, step=state.step + 1)
            force.states[state.digest] = next_step
            before = force.move(name)
            try:
                told = await self._tell(
                    "rollout.stepped", {**body, "step": next_step.step, "share": next_step.share}
                )
            except Exception:
                force.states[state.digest] = state
                place.live.table = place.live.table.with_names_of(before)
                raise
            force.states[state.digest] = replace(next_step, since=told.at)
            force.watch(force.states[state.digest])
        log.info("rollout of %s goes up to %g: %s", name, next_step.share, evidence.reason)

    async def _end(self, state: RolloutState, reason: str, evidence: RolloutEvidence | None) -> None:
        """Take a rollout's traffic away, then tell the ledger; told later if the ledger cannot be written now."""
        force, place, name = self._force, self._place, state.rollout.public_name
        async with place.moving:
            if state.digest not in force.states:
                return
            force.halt(state.digest, reason, evidence)
            body: JsonDict = {"public_name": name, "rollout": state.digest, "reason": reason}
            if evidence is not None:
                body["evidence"] = await asyncio.to_thread(place.registry.store.put_record, evidence)
            await self._tell("rollout.aborted", body, ahead=1)
            place.live.table = place.live.table.with_version(place.live.table.version + 1)
            force.forget(state)
        log.warning("rollout of %s (%s) is aborted: %s", name, state.rollout.kind, reason)

    async def _tell(self, kind: EventKind, body: JsonDict, ahead: int = 0) -> Event:
        version = self._place.live.table.version + ahead
        return await asyncio.to_thread(self._place.tell, kind, {**body, "route_version": version})
