"""Carries out what `llmops engine` asks for: a second engine beside the one that serves, the switch to it, and back.

A second engine is started, and what it may serve is verified, loaded and proved on it, while the first serves on. The
switch checks every public name's release against the second engine's signature and is one assignment; what runs on the
first ends there. The first stays loaded until it is retired, so that going back loads nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from llmops.errors import BadRequest, CouldNotRun, EngineFailed, LlmopsError, ReleaseRefused
from llmops.ledger import Event, EventKind
from llmops.records import EngineSettings, Release, StartedEngine
from llmops.registry.bases import Base, resolve_base
from llmops.registry.engine_moves import answer_to, decision_on, stands_on
from llmops.schema import JsonDict, short
from llmops.serving.engine_switch import Room, Switching
from llmops.serving.fleet import Loaded
from llmops.serving.keeper import Keeper
from llmops.serving.seat import NotLeading
from llmops.serving.standing import with_settings

log = logging.getLogger("llmops.serving")


class EngineDesk:
    """The requests about one gateway's engines."""

    def __init__(self, room: Room) -> None:
        """Do nothing yet; `since` is the ledger's newest event when the gateway started."""
        self.since = 0
        self._place = room.place
        self._engines = room.engines
        self._engines.on_lost = self._note_lost
        self._busy: str | None = None
        self._switching = Switching(room)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self, event: Event) -> None:
        """Carry out one request, or refuse it; the ledger gets the answer, of what takes long later."""
        if event.seq <= self.since:
            if await asyncio.to_thread(answer_to, self._place.registry, event) is None:
                await self._refuse(
                    event, CouldNotRun("engine: the gateway was started again since; ask again")
                )
            return
        actions: dict[str, Callable[[Event], Awaitable[None]]] = {
            "start": self._start, "switch": self._switch, "back": self._back, "retire": self._retire,
        }  # fmt: skip
        try:
            action = str(event.body["action"])
            if action != "retire":  # which the others do not notice
                await self._require_alone()
            await actions[action](event)
        except LlmopsError as error:
            await self._refuse(event, error)

    async def add_adapter(self, keeper: Keeper, reference: str) -> Loaded:
        """As `Control.add_adapter`, on the engine that stands by."""
        record = await asyncio.to_thread(self._place.registry.adapter, reference)
        await asyncio.to_thread(self._place.registry.verify, record)
        return await keeper.load(record, self._engines.standby_weight)

    # ------------------------------------------------------------ start

    async def _start(self, event: Event) -> None:
        self._require_free()
        if self._engines.standby is not None:
            raise BadRequest(
                "engine start: a second engine stands there already; `llmops engine retire` ends what does not serve"
            )
        digest = str(event.body["settings"])
        settings = await asyncio.to_thread(self._place.registry.store.get_record, EngineSettings, digest)
        self._spawn("an engine is being started", event, self._bring_up(event, settings))

    async def _bring_up(self, event: Event, settings: EngineSettings) -> None:
        place, engines = self._place, self._engines
        base = await asyncio.to_thread(resolve_base, settings.base_model)
        keeper = engines.second(with_settings(engines.serving.kept.profile, settings))
        await keeper.open(base)
        try:
            loaded, problems = await self._fill(keeper, base)
            session = keeper.fleet.session
            started = StartedEngine(settings.digest(), session.signature)
            body = {
                "request": event.seq, "engine": session.engine_digest, "adapters": loaded, "problems": problems,
                "started": await asyncio.to_thread(place.registry.store.put_record, started),
            }  # fmt: skip
            engines.stand_by(keeper)
            await self._tell("engine.started", body)
        except BaseException:
            if engines.standby is keeper:
                engines.let_go()
            await keeper.close()
            raise
        log.info("engine %s stands beside the one that serves", short(session.engine_digest))

    async def _fill(self, keeper: Keeper, base: Base) -> tuple[list[str], dict[str, str]]:
        """Load and prove what the names may need; gives the adapters, and why others could not be had."""
        registry, signature = self._place.registry, keeper.fleet.session.signature
        loaded: list[str] = []
        problems: dict[str, str] = {}
        for name, release in self._switching.champions().items():
            adapter: str | None = release.adapter
            try:
                if (await asyncio.to_thread(registry.adapter, release.adapter)).base != base.digest:
                    decision = await asyncio.to_thread(decision_on, registry, name, signature)
                    adapter = decision.candidate if decision is not None else None
                if adapter is None or adapter in loaded:
                    continue
                self._engines.needed |= {adapter}
                record = await asyncio.to_thread(registry.adapter, adapter)
                await asyncio.to_thread(registry.verify, record)
                await keeper.load(record, self._engines.standby_weight)
                loaded.append(adapter)
            except LlmopsError as error:
                log.warning("%s: not on the second engine: %s", name, error)
                problems[str(adapter)] = str(error)
        return loaded, problems

    # ------------------------------------------------------------ switch and back

    async def _switch(self, event: Event) -> None:
        keeper = self._standing()
        asked = str(event.body["engine"])
        there = keeper.fleet.session.engine_digest
        if asked != there:
            raise ReleaseRefused(
                f"engine switch: asked for engine {short(asked)}, but {short(there)} stands by; ask again"
            )
        if self._engines.serving_is == "green":
            raise BadRequest(
                "engine switch: the second engine serves already; `llmops engine back` undoes it"
            )
        get = self._place.registry.store.get_record
        releases = {
            str(name): await asyncio.to_thread(get, Release, str(digest))
            for name, digest in event.body["releases"].items()
        }
        await self._switching.carry_out(event, keeper, releases)
        if (after_s := event.body.get("retire_after_s")) is not None:
            self._spawn(None, event, self._retire_later(float(after_s), event))

    async def _back(self, event: Event) -> None:
        if self._engines.serving_is != "green":
            raise BadRequest("engine back: the engine was not switched, so there is none to go back to")
        keeper = self._standing()
        signature, registry = keeper.fleet.session.signature, self._place.registry
        releases = {**self._switching.champions(), **self._switching.aside}
        foreign = [
            name
            for name, release in releases.items()
            if name not in self._switching.aside
            and not await asyncio.to_thread(stands_on, registry, release, signature)
        ]
        if foreign:
            raise ReleaseRefused(
                f"engine back: {', '.join(foreign)} came after the switch and was not measured on the engine before; "
                "start that engine's profile with `llmops engine start` and measure there"
            )
        await self._switching.carry_out(event, keeper, releases, again=True)

    # ------------------------------------------------------------ retire

    async def _retire(self, event: Event) -> None:
        self._require_free()
        if self._engines.standby is None:
            raise BadRequest("engine retire: no second engine stands beside the one that serves")
        self._spawn("an engine is being retired", event, self._end(event))

    async def _retire_later(self, after_s: float, event: Event) -> None:
        second = self._engines.standby
        await asyncio.sleep(after_s)
        if second is not None and self._engines.standby is second and self._engines.serving_is == "green":
            await self._end(event)

    async def _end(self, event: Event) -> None:
        second = self._engines.let_go()
        if second is None:
            return
        digest = second.engine_digest
        self._forget_standby()
        await second.end()
        await self._tell("engine.retired", {"request": event.seq, "engine": digest, "reason": "asked for"})
        log.info("engine %s has ended", short(digest))

    async def _note_lost(self, engine: str) -> None:
        self._forget_standby()
        try:
            await self._tell("engine.retired", {"engine": engine, "reason": "it died"})
        except NotLeading as away:
            log.warning("engine %s is gone: %s", short(engine), away)

    def _forget_standby(self) -> None:
        self._switching.aside, self._engines.needed = {}, frozenset()

    # ------------------------------------------------------------ all of them

    def _standing(self) -> Keeper:
        """The engine that stands by.

        Raises:
            BadRequest: there is none.
            CouldNotRun: another request is under way.
        """
        self._require_free()
        if self._engines.standby is None:
            raise BadRequest(
                "engine: no second engine stands beside the one that serves; `llmops engine start PROFILE`"
            )
        return self._engines.standby

    async def _require_alone(self) -> None:
        if n_others := await asyncio.to_thread(self._place.count_others):
            raise BadRequest(
                f"engine: {n_others} other gateways follow this one with engines of their own; end them first, and "
                "start them again with the new engine's profile"
            )

    def _require_free(self) -> None:
        if self._busy is not None:
            raise CouldNotRun(f"engine: {self._busy}; wait for it, `llmops engine status` shows it")

    def _spawn(self, busy: str | None, event: Event, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes long beside the other requests; while `busy` is said no other one about engines is taken."""
        if busy is not None:
            self._busy = busy
        task = asyncio.create_task(self._run(busy, event, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, busy: str | None, event: Event, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except LlmopsError as error:
            await self._refuse(event, error)
        except Exception as error:
            log.exception("an engine request failed")
            await self._refuse(event, EngineFailed(f"engine: {error!r}; see the log of the gateway"))
        finally:
            if busy is not None:
                self._busy = None

    async def _refuse(self, event: Event, error: LlmopsError) -> None:
        log.warning("engine %s refused: %s", event.body["action"], error)
        body = {"request": event.seq, "reason": str(error), "exit_code": error.exit_code}
        try:
            await self._tell("engine.refused", body)
        except NotLeading as away:
            log.warning("engine %s: %s", event.body["action"], away)

    async def _tell(self, kind: EventKind, body: JsonDict) -> None:
        await asyncio.to_thread(self._place.tell, kind, body)
