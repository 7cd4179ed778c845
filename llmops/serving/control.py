"""The control loop: makes what serves follow what the ledger says.

At the start every public name is verified, loaded, proved and routed, or answers 503 with the reason. Then
the ledger is asked four times a second for requests: a release ends in `release.activated` or `release.refused`,
a rollout goes to `llmops.serving.rollout.director`. All files, hashes and database work run in threads. A flip to
an adapter that is loaded and proved waits for nothing else.
"""

from __future__ import annotations

import asyncio
import logging

from llmops.errors import LlmopsError, ReleaseRefused
from llmops.ledger import Event, EventKind
from llmops.records import AdapterRecord, Release
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.registry.names import NameState
from llmops.schema import short
from llmops.serving.engine_desk import EngineDesk
from llmops.serving.engine_switch import Room
from llmops.serving.engines import Engines
from llmops.serving.evidence import check_champion, check_request, replay
from llmops.serving.fleet import Fleet, Loaded
from llmops.serving.profile import ServeProfile
from llmops.serving.rollout.director import Director, Place
from llmops.serving.routes import Live, Route
from llmops.settings import Workspace

POLL_S = 0.25
REQUESTS: tuple[EventKind, ...] = (
    "release.requested",
    "rollout.requested",
    "rollout.abort_requested",
    "engine.requested",
)
RETRY_S = 2.0

log = logging.getLogger("llmops.serving")


class Control:
    """One workspace's public names on one engine."""

    def __init__(self, profile: ServeProfile, workspace: Workspace, live: Live) -> None:
        """Prepare; `start` does the work."""
        self.registry = Registry.of(workspace)
        self.keeper = Engines(profile, workspace, self.registry, live)
        self.keeper.restore = self._restore_all
        self.states: dict[str, NameState] = {}
        self._profile = profile
        self._live = live
        self._chain_fault: str | None = None
        self._last_seq = 0
        self._unanswered: tuple[Event, ...] = ()
        self._warm = False  # the previous champions were loaded, or tried, in this engine session
        self._moving = asyncio.Lock()  # held while a name moves: table, ledger and states change together
        place = Place(
            self.registry, self.keeper, live, self._moving, self._state_of, self._weight, self._require_chain
        )
        self.rollouts = Director(place)
        self.desk = EngineDesk(Room(place, self.keeper, lambda: self.states, self.rollouts.status))
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def fleet(self) -> Fleet:
        """The adapters of the running engine session."""
        return self.keeper.fleet

    async def start(self) -> None:
        """Start the engine, route every public name that holds, and begin to follow the ledger.

        Raises:
            LlmopsError: the base or the engine cannot be had; nothing is left running.
        """
        base = await asyncio.to_thread(resolve_base, self._profile.base_model)
        await self.keeper.open(base)
        try:
            await self._replay()
        except BaseException:
            await self.keeper.close()
            raise
        self._live.table = self._live.table.with_down(None)
        loops = (self._follow(), self.keeper.watch(), self.rollouts.watch())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """End the loops and the engine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.desk.close()
        self._live.table = self._live.table.with_down("serving has stopped")
        await self.keeper.close()

    async def add_adapter(self, reference: str) -> Loaded:
        """Verify, load and prove a registered adapter under its operator name.

        Raises:
            LlmopsError: it is unknown, altered, does not fit, or is not applied by the engine.
        """
        record = await asyncio.to_thread(self.registry.adapter, reference)
        await asyncio.to_thread(self.registry.verify, record)
        return await self.keeper.load(record, self._weight)

    def _weight(self, digest: str) -> int:
        """How much an adapter matters to the names: see `fleet.Weight`."""
        if self.rollouts.needs(digest) or any(
            route.adapter == digest for route in self._live.table.names.values()
        ):
            return 2
        return int(any(state.previous and state.previous.adapter == digest for state in self.states.values()))

    def _state_of(self, name: str) -> NameState:
        return self.states.get(name, NameState(name))

    # ------------------------------------------------------------ what is in force

    async def _replay(self) -> None:
        """Take over what the ledger says at the start."""
        self.desk.since = (await asyncio.to_thread(self.registry.ledger.head))[0]
        found = await asyncio.to_thread(replay, self.registry)
        self._chain_fault, self._unanswered, self._last_seq = (
            found.chain_fault,
            found.unanswered,
            found.last_seq,
        )
        self.states = dict(found.states)
        self.rollouts.take_over(found.running)
        self._live.table = self._live.table.with_version(found.version)
        for name, broken in found.broken.items():
            self._route(Route(name, broken.adapter, broken.release, None, broken.reason))
        await self._restore_all(())

    async def _restore_all(self, records: tuple[AdapterRecord, ...]) -> None:
        """Route every name to its champion on a new engine session, then load `records` while there is room."""
        self._warm = False
        async with self._moving:
            for name, state in self.states.items():
                if state.champion is not None:
                    await self._restore(name, state.champion)
            await self.rollouts.restore()
        for record in records:
            try:
                await asyncio.to_thread(self.registry.verify, record)
                await self.fleet.load(record, self._weight)
            except LlmopsError as error:
                log.warning("adapter %s is not loaded again: %s", record.model_name, error)

    async def _restore(self, name: str, release: Release) -> None:
        """Route a name to its champion if everything holds, else to the reason why not."""
        target = reason = None
        try:
            self._require_chain()
            record = await asyncio.to_thread(
                check_champion, self.registry, release, self.fleet.session.signature
            )
            target = (await self.fleet.load(record, self._weight)).target
        except LlmopsError as error:
            reason = str(error)
        self._route(Route(name, release.adapter, release.digest(), target, reason))

    def _route(self, route: Route) -> None:
        if route.reason is not None:
            log.error("model %s does not serve: %s", route.name, route.reason)
        self._live.table = self._live.table.with_route(route)

    def _require_chain(self) -> None:
        if self._chain_fault is not None:
            raise ReleaseRefused(self._chain_fault)

    async def _warm_previous(self) -> None:
        """Load previous champions, so that a rollback is a flip; one that cannot be loaded is only noted."""
        for state in list(self.states.values()):
            if state.previous is None:
                continue
            try:
                signature = self.fleet.session.signature
                record = await asyncio.to_thread(check_champion, self.registry, state.previous, signature)
                await self.keeper.load_if_room(record, self._weight)
            except LlmopsError as error:
                log.warning("model %s: its previous champion is not at hand: %s", state.name, error)

    # ------------------------------------------------------------ requests

    async def _follow(self) -> None:
        """Settle requests in the order they were made, for ever."""
        pending = list(self._unanswered)
        while True:
            try:
                while pending:
                    await self._settle(pending[0])
                    pending.pop(0)
                if not self._warm:
                    self._warm = True
                    await self._warm_previous()
                await asyncio.sleep(POLL_S)
                pending = await asyncio.to_thread(
                    self.registry.ledger.events, *REQUESTS, after=self._last_seq
                )
                self._last_seq = pending[-1].seq if pending else self._last_seq
            except Exception:  # a full disk or a locked database must not end the loop
                log.exception("release requests could not be settled; trying again")
                await asyncio.sleep(RETRY_S)

    async def _settle(self, event: Event) -> None:
        """Carry out one request, or refuse it; the ledger gets the answer."""
        await self.keeper.ready.wait()
        if event.kind != "release.requested":
            await (self.desk if event.kind == "engine.requested" else self.rollouts).settle(event)
            return
        body = {key: str(event.body[key]) for key in ("public_name", "release", "adapter")}
        try:
            self._require_chain()
            release = await asyncio.to_thread(self.registry.store.get_record, Release, body["release"])
            state = self._state_of(release.public_name)
            signature = self.fleet.session.signature
            record = await asyncio.to_thread(check_request, self.registry, release, state, signature)
            await self._move(release, record, body)
        except LlmopsError as error:
            log.warning("release %s -> %s refused: %s", body["public_name"], short(body["adapter"]), error)
            await asyncio.to_thread(
                self.registry.ledger.append, "release.refused", {**body, "reason": str(error)}
            )

    async def _move(self, release: Release, record: AdapterRecord, body: dict[str, str]) -> None:
        """Point a name at an adapter: load and prove it, swap the table, tell the ledger."""
        name = release.public_name
        while True:
            loaded = await self.keeper.load(record, self._weight)
            async with self._moving:
                if self.keeper.fleet.get(record.adapter) is not loaded:
                    continue  # the engine was replaced, or the slot retired, while this waited
                history = self._state_of(name).after(release)
                before = self._live.table
                plan = self.rollouts.plan(name, release.adapter)
                route = Route(name, release.adapter, history[-1].digest(), loaded.target, plan=plan)
                self._live.table = before.moved(route)
                told = {**body, "route_version": self._live.table.version}
                try:
                    await asyncio.to_thread(self.registry.ledger.append, "release.activated", told)
                except Exception:
                    self._live.table = self._live.table.with_names_of(before)
                    raise
                self.states[name] = NameState(name, history)
                self.rollouts.released(name, release.adapter)
            log.info("%s -> %s (%s)", name, loaded.record.model_name, release.kind)
            return
