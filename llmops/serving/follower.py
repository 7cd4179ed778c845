"""What a gateway that follows makes of the ledger's events: the leader's table, on its own engine.

A request is prepared for as soon as it is seen (verified, loaded, proved; no traffic), so that what the leader makes of
it is a flip here. Events are taken over in their order; until an activated adapter is proved on this engine the table
before stays in force. One that cannot be loaded or proved here answers 503 by its name, and the others serve on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from llmops.errors import BadRequest, CouldNotRun, InvalidEvidence, LlmopsError
from llmops.ledger import Event
from llmops.records import Release, Rollout
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base
from llmops.registry.names import RELEASE_KINDS, NameState, readable_states
from llmops.registry.rollouts import RolloutState
from llmops.schema import short
from llmops.serving.evidence import check_champion
from llmops.serving.fleet import Loaded
from llmops.serving.rollout.inforce import InForce
from llmops.serving.routes import Route
from llmops.serving.target import Target

N_TRIES = 3
TRY_AGAIN_S = 2.0

T = TypeVar("T")

log = logging.getLogger("llmops.serving")


class Follower:
    """Takes over at one gateway what another decided. `states` are its public names, changed with its table."""

    def __init__(self, force: InForce, states: dict[str, NameState]) -> None:
        """Follow with these names and rollouts."""
        self._force = force
        self._place = force.place
        self._states = states
        self._prepared: dict[
            str, frozenset[str]
        ] = {}  # models by the digest of the release or rollout asked for
        self._tasks: set[asyncio.Task[None]] = set()

    def needs(self, model: str) -> bool:
        """Whether a model (digest) is loaded for a request that is not answered yet."""
        return any(model in models for models in self._prepared.values())

    def leave(self) -> None:
        """Prepare nothing any more."""
        for task in self._tasks:
            task.cancel()
        self._prepared.clear()

    # ------------------------------------------------------------ requests

    def prepare(self, request: Event) -> None:
        """Load, in the background, what a request would give traffic to."""
        if request.kind in ("release.requested", "rollout.requested"):
            self._prepared[_asked(request)] = frozenset()
            task = asyncio.create_task(self._prepare(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _prepare(self, request: Event) -> None:
        try:
            await self._place.keeper.ready.wait()
            if request.kind == "release.requested":
                release = await self._release(request)
                if self._expects(request, release.adapter):
                    await self._load(release, only_if_room=True)
                return
            rollout = await self._rollout(request)
            if self._expects(request, *(arm.model for arm in rollout.arms)):
                await self._force.verify(rollout)
                await self._force.models.load(rollout)
        except LlmopsError as error:  # tried again when the leader has answered
            log.info("%s of %s: not at hand yet: %s", request.kind, request.body["public_name"], error)

    def _expects(self, request: Event, *models: str) -> bool:
        """Keep these models for a request; False if it has been answered meanwhile."""
        if _asked(request) not in self._prepared:
            return False
        self._prepared[_asked(request)] = frozenset(models)
        return True

    # ------------------------------------------------------------ what the leader decided

    async def apply(self, event: Event) -> None:
        """Take over one event, in the ledger's order."""
        await self._place.keeper.ready.wait()
        acts: dict[str, Callable[[Event], Awaitable[None]]] = {
            "release.activated": self._activated, "release.refused": self._refused,
            "rollout.started": self._started, "rollout.refused": self._not_begun, "rollout.stepped": self._stepped,
            "rollout.ready": self._ready, "rollout.aborted": self._aborted, "engine.switched": self._switched,
        }  # fmt: skip
        await acts[event.kind](event)
        self._prepared.pop(_asked(event), None)

    async def _activated(self, event: Event) -> None:
        name, adapter = str(event.body["public_name"]), str(event.body["adapter"])
        force, place = self._force, self._place
        while True:
            release, loaded, reason = await self._had(event)
            async with place.moving:
                if loaded is not None and not force.models.are_here((loaded.target,)):
                    continue  # the engine was replaced, or the slot retired, while this waited
                history = () if release is None else place.state_of(name).after(release)
                digest = history[-1].digest() if history else str(event.body["release"])
                target = None if loaded is None else loaded.target
                route = Route(name, adapter, digest, target, reason, force.plan(name, adapter))
                before = place.live.table
                # Releases that come with a switch of the leader's engine are one version, with the switch.
                place.live.table = (
                    before.with_route(route) if "by_engine" in event.body else before.moved(route)
                )
                self._states[name] = NameState(name, history)
                force.released(name, adapter)
            if reason is None:
                log.info("%s -> %s (as the leading gateway says)", name, short(adapter))
            else:
                log.error("model %s does not serve: %s", name, reason)
            return

    async def _had(self, event: Event) -> tuple[Release | None, Loaded | None, str | None]:
        """An activated release with its adapter on this engine, or the reason why there is none."""
        release = None
        try:
            release = await self._release(event)
            found = release
            return release, await _patiently(lambda: self._load(found)), None
        except LlmopsError as error:
            return release, None, str(error)

    async def _load(self, release: Release, only_if_room: bool = False) -> Loaded:
        place = self._place
        await place.keeper.ready.wait()
        place.require_chain()
        signature = place.keeper.fleet.session.signature
        record = await asyncio.to_thread(check_champion, place.registry, release, signature)
        load = place.keeper.load_if_room if only_if_room else place.keeper.load
        return await load(record, place.weight)

    async def _release(self, event: Event) -> Release:
        store = self._place.registry.store
        return await asyncio.to_thread(store.get_record, Release, str(event.body["release"]))

    async def _rollout(self, event: Event) -> Rollout:
        store = self._place.registry.store
        return await asyncio.to_thread(store.get_record, Rollout, str(event.body["rollout"]))

    async def _switched(self, _event: Event) -> None:
        """The leader answers from another engine; this gateway keeps its own, and its names what holds there."""
        async with self._place.moving:
            self._place.live.table = self._place.live.table.with_version(self._place.live.table.version + 1)

    async def _refused(self, _event: Event) -> None:
        """Nothing moves; what was loaded for it goes when its slot is needed, as at the leader."""

    # ------------------------------------------------------------ rollouts

    async def _started(self, event: Event) -> None:
        digest, force = str(event.body["rollout"]), self._force
        try:
            rollout = await self._rollout(event)
        except InvalidEvidence as error:
            log.error("rollout of %s has no traffic: %s", event.body["public_name"], error)
            await self._moved(str(event.body["public_name"]))
            return
        state = RolloutState(rollout, digest, "running", since=event.at, started_at=event.at)
        while True:
            targets, problem = await self._targets(rollout)
            async with self._place.moving:
                if targets and not force.models.are_here(targets):
                    continue
                force.states[digest] = state
                if problem is not None:
                    force.without_traffic(state, problem)
                else:
                    force.targets[digest] = targets
                force.move(rollout.public_name)
                force.watch(state)
            return

    async def _targets(self, rollout: Rollout) -> tuple[tuple[Target, ...], LlmopsError | None]:
        """What answers for a rollout's arms on this engine, or why nothing does; neither when it is over already."""
        if rollout.digest() in self._force.halted:
            return (), None
        try:
            return await _patiently(lambda: self._verified(rollout)), None
        except LlmopsError as error:
            return (), error

    async def _verified(self, rollout: Rollout) -> tuple[Target, ...]:
        await self._place.keeper.ready.wait()
        await self._force.verify(rollout)
        return await self._force.models.load(rollout)

    async def _not_begun(self, event: Event) -> None:
        self._prepared.pop(_asked(event), None)
        try:
            self._force.models.release(await self._rollout(event))
        except InvalidEvidence as error:
            log.info("rollout of %s: %s", event.body["public_name"], error)

    async def _stepped(self, event: Event) -> None:
        await self._moved(str(event.body["public_name"]), event, step=int(event.body["step"]), since=event.at)

    async def _ready(self, event: Event) -> None:
        state = self._force.states.get(str(event.body["rollout"]))
        if state is not None:
            self._force.states[state.digest] = replace(state, ready=True)

    async def _aborted(self, event: Event) -> None:
        digest, force = str(event.body["rollout"]), self._force
        async with self._place.moving:
            force.halted[digest] = (str(event.body["reason"]), None)
            force.move(str(event.body["public_name"]))
            state = force.states.get(digest)
            if state is not None:
                force.forget(state)
            force.halted.pop(digest, None)
        log.warning("rollout of %s is aborted: %s", event.body["public_name"], event.body["reason"])

    async def _moved(self, name: str, event: Event | None = None, step: int = 0, since: str = "") -> None:
        """The next version of the table, with a canary at another step."""
        force = self._force
        async with self._place.moving:
            state = force.states.get(str(event.body["rollout"])) if event is not None else None
            if state is not None:
                state = force.states[state.digest] = replace(state, step=step, since=since)
                force.watch(state)
            force.move(name)


def _asked(event: Event) -> str:
    """Digest of the release or rollout that an event is about; empty for one about engines."""
    return str(event.body.get("release" if event.kind in RELEASE_KINDS else "rollout", ""))


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` gives; tried again when the machine stood in the way, which says nothing about the model.

    Raises:
        LlmopsError: what it failed with last.
    """
    for _ in range(N_TRIES - 1):
        try:
            return await work()
        except CouldNotRun as error:
            log.warning("%s; trying again", error)
            await asyncio.sleep(TRY_AGAIN_S)
    return await work()


def require_same_base(registry: Registry, base: Base) -> None:
    """Refuse to follow on another base model than the table's adapters are made for; called in a thread.

    Raises:
        BadRequest: names the public name, its adapter and both bases.
    """
    states, _ = readable_states(registry.store, registry.ledger.events(*RELEASE_KINDS))
    for name, state in sorted(states.items()):
        if state.champion_adapter is None:
            continue
        record = registry.adapter(state.champion_adapter)
        if record.base != base.digest:
            raise BadRequest(
                f"serve: this profile's base is {base.model_name}, but {name} stands for {record.model_name} on "
                f"base@{short(record.base)}, which the leading gateway serves; set base_model to that one"
            )
