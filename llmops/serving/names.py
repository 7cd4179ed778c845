"""What the public names of one gateway stand for, and how its route table comes to say so on an engine session.

At the start, and after every restart of the engine, each name is verified, loaded, proved and routed, or answers 503
with the reason. All files, hashes and database work run in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from llmops.db import writing
from llmops.errors import LlmopsError, ReleaseRefused
from llmops.ledger import Event, EventKind, append_event
from llmops.records import AdapterRecord, Release
from llmops.registry.adapters import Registry
from llmops.registry.names import NameState
from llmops.schema import JsonDict
from llmops.serving.engines import Engines
from llmops.serving.evidence import Replay, check_champion, replay
from llmops.serving.follower import Follower
from llmops.serving.rollout.inforce import InForce, Place
from llmops.serving.routes import Live, Route
from llmops.serving.seat import NotLeading, Seat

log = logging.getLogger("llmops.serving")


class Names:
    """The names of one gateway with the rollouts under them."""

    def __init__(self, registry: Registry, keeper: Engines, live: Live, seat: Seat) -> None:
        """Begin with none; `replay` takes over what the ledger says."""
        self.states: dict[str, NameState] = {}
        self.moving = asyncio.Lock()  # held while a name moves: table, ledger and states change together
        self.warm = False  # the previous champions were loaded, or tried, in this engine session
        self.last_told = 0  # number of the newest event that this gateway wrote as the leader
        # The lead (`Seat.term`) in which this gateway decides, having taken over all that was decided before it.
        self.term = 0
        self._registry = registry
        self._keeper = keeper
        self._live = live
        self._seat = seat
        self._chain_fault: str | None = None
        place = Place(
            registry, keeper, live, self.moving, self.state_of, self.weight, self.require_chain, self.leads, self.tell,
            self.tell_all, seat.count_others,
        )  # fmt: skip
        self.force = InForce(place)
        self.follower = Follower(self.force, self.states)

    def leads(self) -> bool:
        """Whether this gateway decides about requests now."""
        return 0 < self.term == self._seat.term

    def tell(self, kind: EventKind, body: JsonDict) -> Event:
        """Write an event that only the leader may write; called in a thread.

        Raises:
            NotLeading: another gateway leads, or may; nothing was written.
        """
        return self.tell_all([(kind, body)])[0]

    def tell_all(self, told: Sequence[tuple[EventKind, JsonDict]]) -> list[Event]:
        """As `tell`, of several events at once: all of them are written, or none."""
        if not self.leads():
            raise NotLeading("serving: this gateway does not lead any more; nothing was decided")
        with writing(self._registry.ledger.engine) as connection:
            self._seat.require(connection)
            events = [append_event(connection, kind, body) for kind, body in told]
        self.last_told = max(self.last_told, events[-1].seq)
        return events

    def state_of(self, name: str) -> NameState:
        """What a name stands for; an empty state for one that was never released."""
        return self.states.get(name, NameState(name))

    def weight(self, digest: str) -> int:
        """How much an adapter matters to the names: see `fleet.Weight`."""
        needed = self.force.needs(digest) or self.follower.needs(digest)
        if needed or any(route.adapter == digest for route in self._live.table.names.values()):
            return 2
        return int(any(state.previous and state.previous.adapter == digest for state in self.states.values()))

    def require_chain(self) -> None:
        """Refuse while the ledger cannot be trusted.

        Raises:
            ReleaseRefused: its chain was broken when this gateway started.
        """
        if self._chain_fault is not None:
            raise ReleaseRefused(self._chain_fault)

    # ------------------------------------------------------------ on an engine session

    async def replay(self) -> Replay:
        """Take over what the ledger says at the start."""
        found = await asyncio.to_thread(replay, self._registry)
        self._chain_fault = found.chain_fault
        self.states.update(found.states)
        self.force.take_over(found.running)
        self._live.table = self._live.table.with_version(found.version)
        for name, broken in found.broken.items():
            self._route(Route(name, broken.adapter, broken.release, None, broken.reason))
        await self.restore(())
        return found

    async def restore(self, records: tuple[AdapterRecord, ...]) -> None:
        """Route every name to its champion on a new engine session, then load `records` while there is room."""
        self.warm = False
        async with self.moving:
            for name, state in list(self.states.items()):
                if state.champion is not None:
                    await self._restore(name, state.champion)
            await self.force.restore()
        for record in records:
            try:
                await asyncio.to_thread(self._registry.verify, record)
                await self._keeper.fleet.load(record, self.weight)
            except LlmopsError as error:
                log.warning("adapter %s is not loaded again: %s", record.model_name, error)

    async def _restore(self, name: str, release: Release) -> None:
        """Route a name to its champion if everything holds, else to the reason why not."""
        target = reason = None
        try:
            self.require_chain()
            signature = self._keeper.fleet.session.signature
            record = await asyncio.to_thread(check_champion, self._registry, release, signature)
            target = (await self._keeper.fleet.load(record, self.weight)).target
        except LlmopsError as error:
            reason = str(error)
        self._route(Route(name, release.adapter, release.digest(), target, reason))

    def _route(self, route: Route) -> None:
        if route.reason is not None:
            log.error("model %s does not serve: %s", route.name, route.reason)
        self._live.table = self._live.table.with_route(route)

    async def load_previous(self) -> None:
        """Load previous champions, so that a rollback is a flip; one that cannot be loaded is only noted."""
        self.warm = True
        for state in list(self.states.values()):
            if state.previous is None:
                continue
            try:
                signature = self._keeper.fleet.session.signature
                record = await asyncio.to_thread(check_champion, self._registry, state.previous, signature)
                await self._keeper.load_if_room(record, self.weight)
            except LlmopsError as error:
                log.warning("model %s: its previous champion is not at hand: %s", state.name, error)
