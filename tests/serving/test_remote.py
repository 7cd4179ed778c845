"""An engine that somebody else runs: found, checked, loaded on every replica, and repaired when one comes back bare."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from llmops.errors import BadRequest, EngineFailed
from llmops.records import AdapterRecord, Probes, PromptContract
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base
from llmops.serving.fleet import Fleet, ProofFailed
from llmops.serving.profile import ServeProfile, engine_spec
from llmops.serving.routes import Side
from llmops.serving.session import Session, start_session
from llmops.settings import Workspace
from tests.evals.conftest import write_adapter
from tests.evidence import register

PROBES = Probes(((5, 6, 7),), ((-2.0, -3.0),), ((-1.0, -0.5),))


@dataclass
class Replica:
    """As much of vLLM as the gateway's control asks, with the log-probabilities that a trainer found."""

    url: str = ""
    n_tokens: int = 512
    version: str = "0.32.0"
    applies: bool = True
    loaded: dict[str, str] = field(default_factory=dict)
    site: web.BaseSite | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._empty)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._score)
        return app

    async def _empty(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _models(self, _request: web.Request) -> web.Response:
        cards = [{"id": "base", "max_model_len": self.n_tokens}, *({"id": name} for name in self.loaded)]
        return web.json_response({"data": cards})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["lora_name"] in self.loaded:
            return web.json_response({"error": {"message": "already loaded"}}, status=400)
        self.loaded[body["lora_name"]] = body["lora_path"]
        return web.Response(text="ok")

    async def _unload(self, request: web.Request) -> web.Response:
        del self.loaded[(await request.json())["lora_name"]]
        return web.Response(text="ok")

    async def _score(self, request: web.Request) -> web.Response:
        body = await request.json()
        rows = PROBES.adapter_logprobs if body["model"] != "base" and self.applies else PROBES.base_logprobs
        choices = [{"index": i, "logprobs": {"token_logprobs": [None, *row]}} for i, row in enumerate(rows)]
        return web.json_response({"model": body["model"], "choices": choices})


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    runners = []
    for replica in replicas:
        runner = web.AppRunner(replica.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        replica.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)
    try:
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


@dataclass(frozen=True)
class Room:
    workspace: Workspace
    registry: Registry
    base: Base
    adapter: AdapterRecord

    def profile(self, *replicas: Replica, **engine: Any) -> ServeProfile:
        urls = [replica.url for replica in replicas]
        settings = {"kind": "http", "url": urls[0], "replicas": urls, "served_as": "base", **engine}
        return ServeProfile.model_validate(
            {"base_model": "none", "engine": settings, "max_model_tokens": 512, "port": 0}
        )

    async def session(self, *replicas: Replica, **engine: Any) -> Session:
        spec = engine_spec(self.profile(*replicas, **engine), self.base)
        return await start_session(spec, self.base, self.workspace, 5.0)


@pytest.fixture
def room(workspace: Workspace) -> Room:
    registry = Registry.of(workspace)
    base = Base("tiny", workspace.root, "b" * 64, PromptContract("{{ messages }}", "t" * 64, (2,)))
    adapter = register(registry, base, write_adapter(workspace.root / "docs", 1), probes=PROBES)
    return Room(workspace, registry, base, adapter)


def nothing_matters(_digest: str) -> int:
    return 0


async def test_adapter_is_loaded_and_proved_on_every_replica(room: Room) -> None:
    one, two = Replica(), Replica()
    async with running(one, two):
        session = await room.session(one, two, device_name="NVIDIA H200", dtype="bfloat16")
        fleet = Fleet(session, room.registry, Side())
        loaded = await fleet.load(room.adapter, nothing_matters)
        path = str(room.registry.store.path("adapter", room.adapter.adapter))
        assert one.loaded == two.loaded == {room.adapter.model_name: path}
        assert loaded.proof.passed
        signature = session.signature
        assert (signature.engine, signature.version, signature.device) == ("vllm", "0.32.0", "NVIDIA H200")
        names = fleet.operator_names()
        assert names[room.base.model_name].engine_name == "base"
        assert names[room.adapter.model_name].engine_name == room.adapter.model_name
        await session.close()
        assert one.loaded  # closing leaves somebody else's engine as it is


async def test_replica_that_does_not_apply_the_adapter_keeps_it_from_serving(room: Room) -> None:
    one, two = Replica(), Replica(applies=False)
    async with running(one, two):
        session = await room.session(one, two)
        fleet = Fleet(session, room.registry, Side())
        with pytest.raises(ProofFailed, match="not applied by the engine"):
            await fleet.load(room.adapter, nothing_matters)
        assert one.loaded == two.loaded == {}
        assert fleet.loaded == []
        await session.close()


async def test_replica_that_comes_back_bare_gets_its_adapters_again(room: Room) -> None:
    one, two = Replica(), Replica()
    async with running(one, two):
        session = await room.session(one, two)
        fleet = Fleet(session, room.registry, Side())
        await fleet.load(room.adapter, nothing_matters)
        two.loaded.clear()  # what a restart of its pod does
        await fleet.repair()
        assert one.loaded == two.loaded
        await session.close()


async def test_gateway_that_comes_back_finds_what_was_loaded_and_proves_it(room: Room) -> None:
    one = Replica()
    async with running(one):
        for applies in (True, False):
            one.applies = applies
            session = await room.session(one)
            fleet = Fleet(session, room.registry, Side())
            if applies:
                await fleet.load(room.adapter, nothing_matters)
            else:
                with pytest.raises(ProofFailed):
                    await fleet.load(room.adapter, nothing_matters)
            await session.close()


async def test_engine_s_own_view_of_the_store_is_what_it_is_told(room: Room) -> None:
    one = Replica()
    async with running(one):
        session = await room.session(one, adapters_at="/mnt/adapters")
        await Fleet(session, room.registry, Side()).load(room.adapter, nothing_matters)
        assert one.loaded == {room.adapter.model_name: f"/mnt/adapters/{room.adapter.adapter}"}
        await session.close()


async def test_engine_with_less_context_or_another_base_is_refused(room: Room) -> None:
    short = Replica(n_tokens=256)
    async with running(short):
        with pytest.raises(BadRequest, match="takes 256 tokens, the profile says 512"):
            await room.session(short)
        with pytest.raises(BadRequest, match=r"serves base, not other; .*--served-model-name other"):
            await room.session(short, served_as="other")


async def test_replicas_of_different_versions_are_refused(room: Room) -> None:
    one, two = Replica(), Replica(version="0.33.0")
    async with running(one, two):
        with pytest.raises(EngineFailed, match=r"replicas run different versions .*0\.33\.0"):
            await room.session(one, two)


async def test_engine_that_is_not_there_is_waited_for_and_named(room: Room) -> None:
    spec = engine_spec(room.profile(Replica(url="http://127.0.0.1:9")), room.base)
    with pytest.raises(EngineFailed, match=r"no engine answers within 0\.1 s: http://127\.0\.0\.1:9"):
        await start_session(spec, room.base, room.workspace, 0.1)


@pytest.mark.parametrize("url", ["engine:8000", "http://engine:8000/v1", "ftp://engine"])
def test_address_that_is_none_is_refused(room: Room, url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        room.profile(Replica(url=url))
