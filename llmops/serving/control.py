"""The control loop: makes what serves follow what the ledger says.

The ledger is asked four times a second. The gateway that leads (`seat`; on SQLite the only one) settles requests: a
release ends in `release.activated` or `release.refused`, a rollout goes to `llmops.serving.rollout.director`. One that
follows takes over what the leader decided (`follower`), and leads when the leader is gone. All files, hashes and
database work run in threads. A flip to an adapter that is loaded and proved waits for nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress

from llmops.errors import LlmopsError
from llmops.ledger import Event, EventKind
from llmops.records import AdapterRecord, Release
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.registry.names import NameState
from llmops.schema import short
from llmops.serving.engine_desk import EngineDesk
from llmops.serving.engine_switch import Room
from llmops.serving.engines import Engines
from llmops.serving.evidence import check_request, unanswered
from llmops.serving.fleet import Fleet, Loaded
from llmops.serving.follower import require_same_base
from llmops.serving.names import Names
from llmops.serving.profile import ServeProfile
from llmops.serving.rollout.director import Director
from llmops.serving.routes import Live, Route
from llmops.serving.seat import NotLeading, Seat
from llmops.settings import Workspace

POLL_S = 0.25
SEAT_S = 0.5
REQUESTS: tuple[EventKind, ...] = (
    "release.requested", "rollout.requested", "rollout.abort_requested", "engine.requested",
)  # fmt: skip
DECISIONS: tuple[EventKind, ...] = (
    "release.activated", "release.refused", "rollout.started", "rollout.refused", "rollout.stepped", "rollout.ready",
    "rollout.aborted", "engine.switched",
)  # fmt: skip
RETRY_S = 2.0

log = logging.getLogger("llmops.serving")


class Control:
    """One workspace's public names on one engine."""

    def __init__(self, profile: ServeProfile, workspace: Workspace, live: Live) -> None:
        """Prepare; `start` does the work."""
        self.registry = Registry.of(workspace)
        self.seat = Seat(workspace.database_url)
        self.keeper = Engines(profile, workspace, self.registry, live)
        self.names = Names(self.registry, self.keeper, live, self.seat)
        self.keeper.restore = self.names.restore
        self.rollouts = Director(self.names.force)
        room = Room(self.names.force.place, self.keeper, lambda: self.states, self.rollouts.status)
        self.desk = EngineDesk(room)
        live.side.engine_is_shared = lambda: self.seat.n_others > 0
        self._profile = profile
        self._live = live
        self._last_seq = 0  # of the events that were read
        self._led_from = 0  # of the events behind which only this gateway decides, while it leads
        self._news: deque[Event] = deque()  # read, and not settled or taken over yet
        self._reading = asyncio.Lock()
        self._stir = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def fleet(self) -> Fleet:
        """The adapters of the running engine session."""
        return self.keeper.fleet

    @property
    def states(self) -> dict[str, NameState]:
        """The public names."""
        return self.names.states

    async def start(self) -> None:
        """Start the engine, route every public name that holds, and begin to follow the ledger.

        Raises:
            LlmopsError: the base or the engine cannot be had, or another gateway leads on another base; nothing is left
                running.
        """
        base = await asyncio.to_thread(resolve_base, self._profile.base_model)
        await asyncio.to_thread(self.seat.renew)
        try:
            if not self.seat.leads:
                await asyncio.to_thread(require_same_base, self.registry, base)
                log.info("another gateway leads on this database; this one follows it")
            await self.keeper.open(base)
            self.desk.since = (await asyncio.to_thread(self.registry.ledger.head))[0]
            found = await self.names.replay()
        except BaseException:
            await self.keeper.close()
            await asyncio.to_thread(self.seat.close)
            raise
        self._last_seq = self._led_from = found.last_seq
        if self.seat.leads:
            self.names.term = self.seat.term
            self._news.extend(found.unanswered)
        for request in found.unanswered if not self.seat.leads else ():
            self.names.follower.prepare(request)
        self._live.table = self._live.table.with_down(None)
        loops = [self._read_on(), self._follow(), self.keeper.watch(), self.rollouts.watch()]
        loops += [self._keep_seat()] if self.seat.shared else []
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """End the loops, give up the lead, and end the engine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.desk.close()
        self.names.follower.leave()
        await asyncio.to_thread(self.seat.close)
        self._live.table = self._live.table.with_down("serving has stopped")
        await self.keeper.close()

    async def add_adapter(self, reference: str) -> Loaded:
        """Verify, load and prove a registered adapter under its operator name, at this gateway alone.

        Raises:
            LlmopsError: it is unknown, altered, does not fit, or is not applied by the engine.
        """
        record = await asyncio.to_thread(self.registry.adapter, reference)
        await asyncio.to_thread(self.registry.verify, record)
        return await self.keeper.load(record, self.names.weight)

    # ------------------------------------------------------------ what the ledger says

    async def _read_on(self) -> None:
        """Read what is new, for ever."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._read()
            except Exception:  # a database that is away must not end the loop
                log.exception("the ledger could not be read; trying again")
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        """Put new events behind those that wait; what an aborted rollout has of the traffic goes at once."""
        async with self._reading:
            kinds = REQUESTS if self.names.term else (*REQUESTS, *DECISIONS)
            events = await asyncio.to_thread(self.registry.ledger.events, *kinds, after=self._last_seq)
            if not events:
                return
            self._last_seq = events[-1].seq
            for event in events:
                if event.kind in DECISIONS and event.seq <= self.names.last_told:
                    continue  # decided here, before another gateway led
                if event.kind == "rollout.aborted":
                    self.names.force.halt(str(event.body["rollout"]), str(event.body["reason"]))
                elif event.kind in REQUESTS and not self.names.term:
                    self.names.follower.prepare(event)
                self._news.append(event)
            self._stir.set()

    async def _follow(self) -> None:
        """Settle requests, or take over what was decided about them, in the ledger's order, for ever."""
        while True:
            try:
                await self._turn()
            except NotLeading as error:
                log.warning("%s", error)
                await asyncio.to_thread(self.seat.renew)
                await asyncio.sleep(POLL_S)
            except Exception:  # a full disk or a locked database must not end the loop
                log.exception("release requests could not be settled; trying again")
                await asyncio.sleep(RETRY_S)

    async def _turn(self) -> None:
        """All that waits now, and then a moment's rest."""
        if self.names.term not in (0, self.seat.term):
            await self._step_down()
        if self.names.term != self.seat.term:
            await self._lead(self.seat.term)
        while self._news and self.names.term == self.seat.term:
            await self._take(self._news[0])
            self._news.popleft()
        if not self._news and not self.names.warm:
            await self.names.load_previous()
        self._stir.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stir.wait(), POLL_S if not self._news else 0)

    async def _take(self, event: Event) -> None:
        if event.kind in DECISIONS:
            await self.names.follower.apply(event)
        elif self.names.term:
            await self._settle(event)

    # ------------------------------------------------------------ who leads

    async def _keep_seat(self) -> None:
        """See whether this gateway still has the lead, or can have it, for ever."""
        while True:
            await asyncio.sleep(SEAT_S)
            await asyncio.to_thread(self.seat.renew)
            if self.names.term != self.seat.term:
                self._stir.set()

    async def _lead(self, term: int) -> None:
        """Take over all that the leader before decided, then what it left undone."""
        await self._read()
        while self._news:
            await self._take(self._news[0])  # not a request: those are asked for below
            self._news.popleft()
        up_to = self._led_from = self._last_seq
        waiting = await asyncio.to_thread(unanswered, self.registry, up_to)
        # What was read meanwhile has a higher number, and nobody else can have decided anything.
        self._news.extendleft(reversed(waiting))
        self.desk.since = up_to
        self.names.term = term
        self.names.follower.leave()
        n_running = len(self.names.force.states)
        log.warning(
            "this gateway leads now: it carries on %d rollouts and settles %d requests",
            n_running,
            len(waiting),
        )

    async def _step_down(self) -> None:
        """Decide nothing any more; what was about to be decided here is for another gateway."""
        async with self._reading:
            self.names.term = 0
            self._news.clear()
            # Requests were read since, and perhaps beyond what another gateway has decided about them.
            self._last_seq = max(self._led_from, self.names.last_told)
        async with self.names.moving:
            self.names.force.resume()
        log.warning("this gateway does not lead any more; it follows")

    # ------------------------------------------------------------ requests

    async def _settle(self, event: Event) -> None:
        """Carry out one request, or refuse it; the ledger gets the answer."""
        await self.keeper.ready.wait()
        if event.kind != "release.requested":
            await (self.desk if event.kind == "engine.requested" else self.rollouts).settle(event)
            return
        body = {key: str(event.body[key]) for key in ("public_name", "release", "adapter")}
        try:
            self.names.require_chain()
            release = await asyncio.to_thread(self.registry.store.get_record, Release, body["release"])
            state = self.names.state_of(release.public_name)
            signature = self.fleet.session.signature
            record = await asyncio.to_thread(check_request, self.registry, release, state, signature)
            await self._move(release, record, body)
        except NotLeading:
            raise
        except LlmopsError as error:
            log.warning("release %s -> %s refused: %s", body["public_name"], short(body["adapter"]), error)
            await asyncio.to_thread(self.names.tell, "release.refused", {**body, "reason": str(error)})

    async def _move(self, release: Release, record: AdapterRecord, body: dict[str, str]) -> None:
        """Point a name at an adapter: load and prove it, swap the table, tell the ledger."""
        name, force = release.public_name, self.names.force
        while True:
            loaded = await self.keeper.load(record, self.names.weight)
            async with self.names.moving:
                if self.keeper.fleet.get(record.adapter) is not loaded:
                    continue  # the engine was replaced, or the slot retired, while this waited
                history = self.names.state_of(name).after(release)
                before = self._live.table
                plan = force.plan(name, release.adapter)
                route = Route(name, release.adapter, history[-1].digest(), loaded.target, plan=plan)
                self._live.table = before.moved(route)
                told = {**body, "route_version": self._live.table.version}
                try:
                    await asyncio.to_thread(self.names.tell, "release.activated", told)
                except Exception:
                    self._live.table = self._live.table.with_names_of(before)
                    raise
                self.states[name] = NameState(name, history)
                force.released(name, release.adapter)
            log.info("%s -> %s (%s)", name, loaded.record.model_name, release.kind)
            return
