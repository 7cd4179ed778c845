"""Having the other engine serve: every public name's release is verified, loaded and proved there, then all is changed.

The table, the engine and its address change by one assignment (`Engines.swap`), the ledger by one transaction: one
version of the route table, whatever the number of names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llmops.errors import EngineFailed, ReleaseRefused
from llmops.ledger import Event, EventKind
from llmops.records import Release
from llmops.registry.names import NameState
from llmops.schema import JsonDict, short
from llmops.serving.engines import Engines
from llmops.serving.evidence import check_champion, check_request
from llmops.serving.fleet import Loaded
from llmops.serving.keeper import Keeper
from llmops.serving.lock import announce_running, running
from llmops.serving.rollout.inforce import Place
from llmops.serving.routes import Route
from llmops.serving.standing import settings_of

log = logging.getLogger("llmops.serving")


@dataclass(frozen=True)
class Room:
    """What requests about engines work with, and share with control and its rollouts."""

    place: Place
    engines: Engines
    states: Callable[[], dict[str, NameState]]  # by public name; changed in place
    rollouts: Callable[[str], list[JsonDict]]  # those that run under a name


class Switching:
    """Switches between the two engines of one gateway."""

    def __init__(self, room: Room) -> None:
        """Nothing was switched; `aside` holds what served, by name, on the engine that stands by since the switch."""
        self.aside: dict[str, Release] = {}
        self._room, self._place, self._engines = room, room.place, room.engines

    def champions(self) -> dict[str, Release]:
        """The release in force of every public name that has one."""
        return {name: s.champion for name, s in self._room.states().items() if s.champion is not None}

    async def carry_out(
        self, event: Event, to: Keeper, releases: Mapping[str, Release], again: bool = False
    ) -> None:
        """Have `to` serve these releases; `again`: they were in force there before.

        Raises:
            ReleaseRefused: a rollout runs, a name is not among the releases, or one was not measured on that engine.
            InvalidEvidence: what a release stands on is missing or was altered, or the engine does not apply it.
            EngineFailed: the engine is not there.
        """
        self._require_quiet()
        self._place.require_chain()
        if not await to.fleet.session.healthy():
            raise EngineFailed("engine: the one that stands by does not answer; see its log")
        await to.fleet.repair()
        self._engines.needed = frozenset(release.adapter for release in releases.values())
        await self._require_evidence(to, releases, again)
        loaded = {name: await self._loaded(to, release) for name, release in releases.items()}
        settings = await asyncio.to_thread(self._settings, to)
        async with self._place.moving:
            if self.champions().keys() != releases.keys() or not _are_here(to, loaded):
                raise ReleaseRefused("engine: names or adapters changed meanwhile; ask again")
            serves = {name: (releases[name], loaded[name]) for name in releases}
            await self._change({"request": event.seq, **settings}, to, serves)
        try:
            await asyncio.to_thread(self._announce)
        except OSError:  # it serves, whatever the file says
            log.exception("serve.json does not tell the engine that serves")
        log.info("engine %s serves now", short(to.engine_digest))

    async def _change(self, why: JsonDict, to: Keeper, serves: Mapping[str, tuple[Release, Loaded]]) -> None:
        """Table, engine, ledger and states change together; the caller holds the lock on moves."""
        before, champions = self._place.live.table, self.champions()
        routes = {
            name: Route(name, release.adapter, release.digest(), found.target)
            for name, (release, found) in serves.items()
        }
        to.side.table = replace(to.side.table, names={**before.names, **routes}, version=before.version + 1)
        moved = {name: release for name, (release, _) in serves.items() if release != champions[name]}
        told = _events(why, to, moved)
        self._engines.swap()
        try:
            await asyncio.to_thread(self._place.tell_all, told)
        except BaseException:
            self._engines.swap()
            raise
        self.aside = champions
        states = self._room.states()
        for name, release in moved.items():
            states[name] = NameState(name, states[name].after(release))

    async def _require_evidence(self, to: Keeper, releases: Mapping[str, Release], again: bool) -> None:
        registry, signature = self._place.registry, to.fleet.session.signature
        states = self._room.states()
        for name, release in releases.items():
            state = states.get(name, NameState(name))
            if again or release == state.champion:
                await asyncio.to_thread(check_champion, registry, release, signature)
            else:
                await asyncio.to_thread(check_request, registry, release, state, signature)

    async def _loaded(self, to: Keeper, release: Release) -> Loaded:
        record = await asyncio.to_thread(self._place.registry.adapter, release.adapter)
        return await to.load(record, self._engines.standby_weight)

    def _settings(self, to: Keeper) -> JsonDict:
        """What the engine that is to serve was told, and the one it takes the place of; written to the store."""
        put = self._place.registry.store.put_record
        now, before = (put(settings_of(of.kept.profile)) for of in (to, self._engines.serving))
        return {"settings": now, "instead_of": before}

    def _announce(self) -> None:
        """Have serve.json tell the engine that serves."""
        workspace = self._engines.workspace
        info = running(workspace)
        if info is not None:
            announce_running(workspace, info.url, self._engines.fleet.session.signature)

    def _require_quiet(self) -> None:
        names = [name for name in self._place.live.table.names if self._room.rollouts(name)]
        if names:
            raise ReleaseRefused(
                f"engine: rollouts run under {', '.join(names)}; end them first with `llmops rollout abort` or promote"
            )


def _are_here(keeper: Keeper, loaded: Mapping[str, Loaded]) -> bool:
    """Whether an engine answers, and these are still in its running session."""
    if keeper.side.table.down is not None:
        return False
    return all(keeper.fleet.get(found.record.adapter) is found for found in loaded.values())


def _events(why: JsonDict, to: Keeper, moved: Mapping[str, Release]) -> list[tuple[EventKind, JsonDict]]:
    """What the ledger is told of a switch, all of it or nothing."""
    version = to.side.table.version
    told: list[tuple[EventKind, JsonDict]] = [
        (
            "release.activated",
            {
                "public_name": name, "release": release.digest(), "adapter": release.adapter,
                "by_engine": to.engine_digest, "route_version": version,
            },
        )
        for name, release in moved.items()
    ]  # fmt: skip
    return [*told, ("engine.switched", {**why, "engine": to.engine_digest, "route_version": version})]
