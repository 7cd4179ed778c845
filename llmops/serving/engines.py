"""The engines under a gateway: the one that serves, and for a while a second one beside it.

Blue is the engine that was there, green the one that `llmops engine start` put beside it; once one of them is retired
the other is blue again. Control and rollouts know only the one that serves, which this stands for. Each has a side of
its own (`routes.Side`), so that a switch is one assignment and what runs on the other goes on there. An engine that
dies while it stands by is noted and let go; nothing of the one that serves is touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from llmops.errors import LlmopsError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base
from llmops.serving.fleet import Fleet, Loaded, Weight
from llmops.serving.keeper import Keeper, Kept, Restore
from llmops.serving.profile import ServeProfile
from llmops.serving.routes import Live, Side
from llmops.serving.session import ENGINE_LOG
from llmops.settings import Workspace

WATCH_S = 0.25
SECOND_LOG = "engine-second.log"

Colour = Literal["blue", "green"]
log = logging.getLogger("llmops.serving")


class Engines:
    """The engine that serves, as a `Keeper`, and the one that stands by, if there is one."""

    def __init__(self, profile: ServeProfile, workspace: Workspace, registry: Registry, live: Live) -> None:
        """Prepare; `open` starts the engine. Set `restore`, and `on_fatal`, before."""
        self.live = live
        self.restore: Restore | None = None
        self.on_fatal: Callable[[], None] = lambda: None
        self.on_lost: Callable[[str], Awaitable[None]] | None = None
        self.needed: frozenset[str] = (
            frozenset()
        )  # adapters (digests) that keep their slot in the one that stands by
        self.workspace = workspace
        self._registry = registry
        self.serving = self._keeper(profile, live.side, ENGINE_LOG)
        self.standby: Keeper | None = None
        self.serving_is: Colour = "blue"

    def _keeper(self, profile: ServeProfile, side: Side, log_name: str) -> Keeper:
        keeper = Keeper(Kept(profile, self.workspace, self._registry, side, log_name))
        keeper.restore = lambda records: self._restored(keeper, records)
        keeper.on_fatal = lambda: self.on_fatal() if keeper is self.serving else None
        return keeper

    # ------------------------------------------------------------ the one that serves

    @property
    def fleet(self) -> Fleet:
        """The adapters of the engine that serves.

        Raises:
            EngineFailed: it is not running at the moment.
        """
        return self.serving.fleet

    @property
    def fatal(self) -> LlmopsError | None:
        """Why the engine that serves could not be brought back."""
        return self.serving.fatal

    @property
    def ready(self) -> asyncio.Event:
        """Set once the engine that serves can be used."""
        return self.serving.ready

    async def open(self, base: Base) -> None:
        """Start the engine that serves; raises as `Keeper.open`."""
        await self.serving.open(base)

    async def close(self) -> None:
        """Stop all engines."""
        second, self.standby = self.standby, None
        await asyncio.gather(*(keeper.close() for keeper in (self.serving, second) if keeper is not None))

    async def load(self, record: AdapterRecord, weight: Weight) -> Loaded:
        """As `Keeper.load`, on the engine that serves."""
        return await self.serving.load(record, weight)

    async def load_if_room(self, record: AdapterRecord, weight: Weight) -> Loaded:
        """As `Keeper.load_if_room`, on the engine that serves."""
        return await self.serving.load_if_room(record, weight)

    async def retire(self, digest: str, weight: Weight) -> None:
        """As `Keeper.retire`, on the engine that serves."""
        await self.serving.retire(digest, weight)

    async def watch(self) -> None:
        """Replace the engine that serves whenever it died or hangs, until it cannot be; let go of a dead second one."""
        while self.fatal is None:
            await asyncio.sleep(WATCH_S)
            await self.serving.look()
            second = self.standby
            words = second.died if second is not None else None
            if second is not None and words is not None:
                await self._lose(second, words)

    # ------------------------------------------------------------ the one that stands by

    @property
    def green(self) -> Keeper | None:
        """The engine that was put beside another one, whichever of them serves."""
        return self.standby if self.serving_is == "blue" else self.serving

    def second(self, profile: ServeProfile) -> Keeper:
        """A keeper for an engine beside the one that serves; it is not started, and `stand_by` makes it known."""
        taken = self.serving.kept.log_name
        side = Side()
        side.engine_is_shared = self.serving.side.engine_is_shared
        return self._keeper(profile, side, SECOND_LOG if taken == ENGINE_LOG else ENGINE_LOG)

    def stand_by(self, keeper: Keeper) -> None:
        """Have an engine that has come up stand beside the one that serves."""
        keeper.side.table = keeper.side.table.with_down(None)
        self.standby, self.serving_is = keeper, "blue"

    def swap(self) -> None:
        """Have the one that stands by serve, and the other stand by: the next request finds it so."""
        assert self.standby is not None
        self.serving, self.standby = self.standby, self.serving
        self.live.side = self.serving.side
        self.serving_is = "green" if self.serving_is == "blue" else "blue"

    def let_go(self) -> Keeper | None:
        """Forget the one that stands by, and give it to whoever ends it; the other is the one engine now."""
        second, self.standby = self.standby, None
        if second is not None:
            second.side.table = second.side.table.with_down("this engine is being retired")
        self.serving_is = "blue"
        return second

    def standby_weight(self, digest: str) -> int:
        """How much an adapter matters in the engine that stands by: see `fleet.Weight`."""
        return 2 if digest in self.needed else 0

    async def _lose(self, second: Keeper, words: str) -> None:
        log.error("the engine that stood by is gone: %s", words)
        digest = second.engine_digest
        if self.standby is second:
            self.let_go()
        await second.close()
        if self.on_lost is not None:
            await self.on_lost(digest)

    async def _restored(self, keeper: Keeper, records: tuple[AdapterRecord, ...]) -> None:
        """Bring back what a new session of an engine needs."""
        if keeper is self.serving:
            assert self.restore is not None
            await self.restore(records)
            return
        for record in sorted(records, key=lambda record: -self.standby_weight(record.adapter)):
            try:
                await keeper.fleet.load(record, self.standby_weight)
            except LlmopsError as error:
                log.warning("adapter %s is not loaded again: %s", record.model_name, error)
