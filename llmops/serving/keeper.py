"""Keeps an engine under the gateway: starts it, sees it die or hang, starts it again with what the names need.

An engine session is also renewed when it has no slot left to give (`fleet.SlotsUsedUp`). While there is no
session the route table is down: every completion is answered 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from llmops.errors import BadRequest, EngineFailed, LlmopsError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base
from llmops.serving.fleet import BUSY_WAIT_S, Fleet, Loaded, SlotsUsedUp, Weight
from llmops.serving.profile import ServeProfile, engine_spec
from llmops.serving.routes import Side
from llmops.serving.session import ENGINE_LOG, start_session
from llmops.settings import Workspace

HEALTH_EVERY_S = 5.0
MAX_UNHEALTHY = 3
RESTART_WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0)  # before each try to start a dead engine again
STABLE_S = 60.0  # an engine that lived this long has all its tries back

log = logging.getLogger("llmops.serving")

Restore = Callable[[tuple[AdapterRecord, ...]], Awaitable[None]]
"""Makes a new session serve what the names need, then those adapters as far as there is room."""


@dataclass(frozen=True)
class Kept:
    """What a keeper works with: the profile, the side it fills, and the name of its engine's log."""

    profile: ServeProfile
    workspace: Workspace
    registry: Registry
    side: Side
    log_name: str = ENGINE_LOG


class Keeper:
    """One engine of a gateway, across its sessions."""

    def __init__(self, kept: Kept) -> None:
        """Prepare; `open` starts the engine. Set `restore` and `on_fatal` before."""
        self.kept = kept
        self.side = kept.side
        self.fatal: LlmopsError | None = None
        self.on_fatal: Callable[[], None] = lambda: None
        self.restore: Restore | None = None
        self.ready = asyncio.Event()
        self._base: Base | None = None
        self._fleet: Fleet | None = None
        self._work = asyncio.Lock()  # held by whoever loads adapters or replaces the session
        self._n_tries = 0  # starts since the engine was last stable
        self._opened_at = 0.0
        self.engine_digest = ""  # of the newest session
        self._n_unhealthy = 0  # answers to /health that were missed in a row
        self._asked_at = time.monotonic()

    @property
    def fleet(self) -> Fleet:
        """The adapters of the running session.

        Raises:
            EngineFailed: there is none at the moment.
        """
        if self._fleet is None:
            raise self.fatal or EngineFailed("serving: the engine is not running; it is being started")
        return self._fleet

    async def open(self, base: Base) -> None:
        """Start the first session.

        Raises:
            EngineFailed, BadRequest: as `start_session`.
        """
        self._base = base
        await self._begin()

    @property
    def died(self) -> str | None:
        """The last words of an engine that is gone and was not brought back; None while there is none."""
        if self.fatal is not None:
            return str(self.fatal)
        if self._fleet is None or self._fleet.session.process.alive():
            return None
        return self._fleet.session.process.last_words("while it stood by")

    async def end(self) -> None:
        """Let what runs on the engine finish, which no answer outlasts, then stop it."""
        try:
            await self._drain(self.kept.profile.timeouts.answer_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop the engine."""
        self.ready.clear()
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            await fleet.session.close()

    async def load(self, record: AdapterRecord, weight: Weight) -> Loaded:
        """The adapter, loaded and proved; at once when it is already, else after whatever that takes.

        Raises:
            LlmopsError: see `Fleet.load`.
        """
        if self._fleet is not None and (found := self._fleet.get(record.adapter)) is not None:
            return found
        async with self._work:
            try:
                return await self.fleet.load(record, weight)
            except SlotsUsedUp as error:
                n_needed = sum(weight(entry.record.adapter) == 2 for entry in self.fleet.loaded)
                if n_needed >= self.fleet.session.spec.max_adapters:
                    raise BadRequest(
                        f"serving: {error}, all by champions and rollouts; raise `slots` in the serving profile"
                    ) from None
                log.info("%s: restarting the engine to get new ones", error)
            await self._renew("the engine is being restarted to free its adapter slots", ())
            return await self.fleet.load(record, weight)

    async def load_if_room(self, record: AdapterRecord, weight: Weight) -> Loaded:
        """As `load`, but never restarts the engine for it.

        Raises:
            LlmopsError: see `Fleet.load`.
        """
        async with self._work:
            return await self.fleet.load(record, weight)

    async def retire(self, digest: str, weight: Weight) -> None:
        """Unload an adapter that nothing needs any more, after its last request."""
        deadline = time.monotonic() + BUSY_WAIT_S
        while True:
            if not self.side.in_flight[digest] or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        async with self._work:
            if self._fleet is not None:
                await self._fleet.retire(digest, weight)

    async def look(self) -> None:
        """Replace the engine if it died or hangs; `fatal` is set when it cannot be brought back."""
        fleet = self._fleet
        if fleet is None or self._work.locked():
            return
        alive = fleet.session.process.alive()
        if alive and time.monotonic() - self._asked_at > HEALTH_EVERY_S:
            self._n_unhealthy = 0 if await fleet.session.healthy() else self._n_unhealthy + 1
            async with self._work:
                await fleet.repair()
            self._asked_at = time.monotonic()
        if not fleet.session.process.alive():
            await self._recover(fleet, fleet.session.process.last_words("while serving"))
        elif self._n_unhealthy >= MAX_UNHEALTHY:
            await self._recover(
                fleet, f"serving: the engine did not answer /health {self._n_unhealthy} times; restarting it"
            )

    async def _recover(self, dead: Fleet, problem: str) -> None:
        async with self._work:
            if self._fleet is not dead:
                return
            self._n_unhealthy = 0
            log.error(problem)
            if time.monotonic() - self._opened_at > STABLE_S:
                self._n_tries = 0
            records = tuple(entry.record for entry in dead.loaded)
            with suppress(LlmopsError):  # kept in `fatal`
                await self._renew("the engine is gone and is being restarted", records, drain=False)

    async def _renew(self, reason: str, records: tuple[AdapterRecord, ...], drain: bool = True) -> None:
        """Another session in place of this one.

        Raises:
            LlmopsError: the last failure, when all tries are used; dying soon after a start uses them, too.
        """
        assert self.restore is not None
        self.side.table = self.side.table.with_down(reason)
        if drain:
            self._n_tries = 0
            await self._drain(self.kept.profile.timeouts.drain_s)
        await self.close()
        failure: LlmopsError = EngineFailed(
            f"serving: the engine died {self._n_tries} times soon after its start; see its log"
        )
        while self._n_tries < len(RESTART_WAITS_S):
            await asyncio.sleep(RESTART_WAITS_S[self._n_tries])
            self._n_tries += 1
            try:
                await self._begin()
                await self.restore(records)
            except Exception as error:
                # Also a full disk or a locked database: the next try may find it mended.
                failure = (
                    error
                    if isinstance(error, LlmopsError)
                    else EngineFailed(f"serving: {error!r}; see the log")
                )
                log.error("%s", failure)
                await self.close()
            else:
                self.side.table = self.side.table.with_down(None)
                return
        self.fatal = failure
        self.side.table = self.side.table.with_down(f"the engine could not be brought back: {failure}")
        self.on_fatal()
        raise failure

    async def _begin(self) -> None:
        assert self._base is not None
        kept = self.kept
        spec = engine_spec(kept.profile, self._base)
        log.info("engine %s is starting on %s", spec.kind, spec.device)
        session = await start_session(
            spec, self._base, kept.workspace, kept.profile.timeouts.engine_start_s, kept.log_name
        )
        self._fleet = Fleet(session, kept.registry, self.side)
        self._opened_at = time.monotonic()
        self.engine_digest = session.engine_digest
        self.side.url = session.process.url
        self.side.table = self.side.table.with_operator(self._fleet.operator_names())
        self.ready.set()

    async def _drain(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while True:
            if not self.side.in_flight.total() or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.05)
