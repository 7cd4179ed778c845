"""A whole gateway - ledger, registry, control, relay - in front of a scripted engine, in a thread of this process.

The engine keeps the names it was told to load and answers for no other, says in every answer which model gave it, and
notes what it was asked in order. Evidence, decisions and releases are genuine; weights are a few bytes.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn
from aiohttp import web

from llmops.engines.client import EngineClient
from llmops.engines.spec import EngineSpec, signature
from llmops.listening import bind
from llmops.records import AdapterRecord, EngineSignature
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base
from llmops.registry.releases import request_promotion
from llmops.serving import control, engine_desk, engines, keeper
from llmops.serving.app import Gateway
from llmops.serving.lock import announce_running, serve_lock, tell_owner
from llmops.serving.rollout import director
from llmops.serving.server import build_app, url_of
from llmops.serving.session import Session
from llmops.settings import Workspace, find_workspace
from tests.evidence import NO_PROBES, activate, decide, register
from tests.in_process import Done, llmops
from tests.serving.bare import CONTRACT, profile_of
from tests.serving.gateway import wait_for

VERSION = "5.19.0"
FLOAT32 = {"kind": "transformers", "dtype": "float32", "device": "cpu"}
OTHER_BASE = Base("other", Path("other"), "f" * 64, CONTRACT)


@dataclass
class StagedEngine:
    """One engine session. `log` holds (what, model) in order; models in `failing` answer 500, those in `broken` break
    off after their first piece."""

    loaded: list[str]
    log: list[tuple[str, str]] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    unlisted: set[str] = field(default_factory=set)
    logprob: dict[str, float] = field(default_factory=dict)
    not_applied: set[str] = field(default_factory=set)
    held: bool = False  # no answer goes out
    mark: str = ""  # stands at the end of every answer
    slow_loads: bool = False  # nothing that is asked to be loaded is
    url: str = ""
    n_answers: int = 0
    running: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/embeddings", self._embed)
        return app

    async def _embed(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        self.log.append(("embed", model))
        vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
        return web.json_response({"object": "list", "model": model, "data": [vector], "usage": {}})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _models(self, _: web.Request) -> web.Response:
        self.log.append(("models", ""))
        return web.json_response({"data": [{"id": n} for n in self.loaded if n not in self.unlisted]})

    async def _load(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        while True:
            if not self.slow_loads:
                break
            await asyncio.sleep(0.01)
        self.log.append(("load", name))
        self.loaded.append(name)
        return web.json_response({})

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.log.append(("unload", name))
        self.loaded.remove(name)
        return web.json_response({})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model = body["model"]
        if model not in self.loaded:
            return web.json_response({"error": {"message": f"no model {model}"}}, status=404)
        if body.get("echo"):
            self.log.append(("proof", model))
            as_base = model == self.loaded[0] or model in self.not_applied
            rows = NO_PROBES.base_logprobs if as_base else NO_PROBES.adapter_logprobs
            choices = [
                {"index": i, "logprobs": {"token_logprobs": [None, *row]}} for i, row in enumerate(rows)
            ]
            return web.json_response({"model": model, "choices": choices})
        self.log.append(("warm-up" if body.get("max_tokens") == 1 else "ask", model))
        if model in self.failing:
            return web.json_response({"error": {"message": "the step failed"}}, status=500)
        self.running += 1
        try:
            while True:
                if not self.held:
                    break
                await asyncio.sleep(0.01)
            return await self._answer(request, body)
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.n_answers += 1
        model, words = body["model"], ["said", " by ", body["model"] + self.mark]
        head = {"id": f"chatcmpl-{self.n_answers}", "created": 1, "model": model}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop", **self._logprobs(body, words)}
            return web.json_response(
                {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            )
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for i, word in enumerate(words):
            end = "stop" if i == 2 else None
            choice = {
                "index": 0,
                "delta": {"content": word},
                "finish_reason": end,
                **self._logprobs(body, [word]),
            }
            await answer.write(_event({**head, "object": "chat.completion.chunk", "choices": [choice]}))
            if model in self.broken:
                assert request.transport is not None
                request.transport.close()
                return answer
        await answer.write(_event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
        await answer.write(b"data: [DONE]\n\n")
        return answer

    def _logprobs(self, body: dict[str, Any], words: list[str]) -> dict[str, Any]:
        if not body.get("logprobs"):
            return {}
        value = self.logprob.get(body["model"], -0.1)
        return {"logprobs": {"content": [{"token": w, "logprob": value} for w in words]}}


def _event(data: object) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class Process:
    """What the gateway sees of the engine's process."""

    spec: EngineSpec
    url: str
    log_path: Path
    runner: web.AppRunner
    pid: int = 1
    dead: bool = False

    def alive(self) -> bool:
        return not self.dead

    def last_words(self, when: str) -> str:
        return f"serving: engine scripted ended with code -9 {when}"

    async def stop(self, grace_s: float = 0.0) -> None:
        await self.runner.cleanup()


@dataclass
class Staged:
    """A running gateway; `engines` are its engine sessions, the newest last."""

    url: str
    gateway: Gateway
    workspace: Workspace
    registry: Registry
    base: Base
    adapters: tuple[AdapterRecord, ...]
    loop: asyncio.AbstractEventLoop
    engines: list[StagedEngine]
    processes: list[Process]
    client: httpx.Client
    thread: threading.Thread | None = None

    def end(self) -> None:
        """Stop the gateway and its engine; nothing when it has stopped."""
        if self.thread is not None and self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.gateway.stopping.set)  # type: ignore[attr-defined]
            self.thread.join(30)

    @property
    def engine(self) -> StagedEngine:
        return self.engines[-1]

    @property
    def signature(self) -> EngineSignature:
        return self.gateway.control.fleet.session.signature

    def cli(self, *arguments: str) -> Done:
        return llmops(self.workspace.root, *arguments)

    def done(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        found = self.cli(*arguments)
        assert found.code == 0, found.err
        return found.out

    def chat(self, model: str = "docs", text: str = "Hi.", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", None)
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
        return self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def decided(self, adapter: AdapterRecord, name: str = "docs", verdict: Any = "PASS") -> None:
        """A genuine decision about an adapter against the name's champion."""
        state = self.gateway.control.states.get(name)
        champion = state.champion_adapter if state else None
        decide(self.registry, adapter, self.signature, baseline=champion, verdict=verdict, public_name=name)

    def logged(self) -> list[dict[str, Any]]:
        """All lines of the request log; what waits is written first."""
        self.run(self.gateway.log._flush())
        path = self.gateway.log.path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def run(self, work: Any) -> Any:
        """The result of a coroutine, run in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def kill_engine(self) -> None:
        """The engine's process is gone, and with it all it had loaded."""
        self.run(self.processes[-1].stop())
        self.processes[-1].dead = True
        wait_for(lambda: len(self.engines) > 1 and self.gateway.live.table.down is None)


def make_workspace(root: Path, n_adapters: int = 3) -> tuple[Workspace, Base, tuple[AdapterRecord, ...]]:
    """A workspace with adapters of a base that nobody could load."""
    (root / "llmops.yaml").write_text("name: test\n")
    workspace = find_workspace(root)
    registry = Registry.of(workspace)
    base = Base("none", root, "b" * 64, CONTRACT)
    found = []
    for i in range(n_adapters):
        folder = root / f"peft{i}"
        folder.mkdir(exist_ok=True)
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes(f"weights {i}".encode())
        found.append(register(registry, base, folder, f"docs{i}"))
    return workspace, base, tuple(found)


@contextmanager
def staged_gateway(root: Path, **profile: Any) -> Iterator[Staged]:
    """A gateway whose name docs stands for the first of three adapters; a workspace that is there is taken over."""
    fresh = not (root / "llmops.yaml").exists()
    workspace, base, adapters = make_workspace(root)
    if fresh:
        release_first(workspace, base, adapters)
    with ExitStack() as stack:
        stack.enter_context(patch.object(control, "POLL_S", 0.02))
        stack.enter_context(patch.object(director, "CHECK_S", 0.1))
        stack.enter_context(patch.object(engines, "WATCH_S", 0.03))
        stack.enter_context(scripted_engines(base))
        yield stack.enter_context(running_gateway(workspace, base, adapters, **profile))


def release_first(workspace: Workspace, base: Base, adapters: tuple[AdapterRecord, ...]) -> None:
    """Have docs stand for the first adapter."""
    registry = Registry.of(workspace)
    decide(registry, adapters[0], signature(_spec(base), VERSION))
    activate(registry, request_promotion(registry, "docs", None)[0])


_STARTED: dict[Path, tuple[list[StagedEngine], list[Process]]] = {}  # engine sessions by workspace


@contextmanager
def scripted_engines(base: Base) -> Iterator[None]:
    """Every gateway of this process gets scripted engines; profiles serve `base`, or a base of another name."""
    bases = {"none": base, "other": OTHER_BASE}
    with ExitStack() as stack:
        stack.enter_context(patch.object(keeper, "start_session", _start_session))
        for module in (control, engine_desk):
            stack.enter_context(patch.object(module, "resolve_base", bases.__getitem__))
        yield


@contextmanager
def running_gateway(
    workspace: Workspace, base: Base, adapters: tuple[AdapterRecord, ...], **profile: Any
) -> Iterator[Staged]:
    """A gateway of a workspace, inside `scripted_engines`; `end` it before the block's end if it is to go first."""
    started: Future[Staged] = Future()
    staged = (workspace, Registry.of(workspace), base, adapters)
    thread = threading.Thread(target=lambda: asyncio.run(_serve(staged, profile, started)))
    thread.start()
    found = started.result(60)
    found.thread = thread
    try:
        yield found
    finally:
        found.end()


def _spec(base: Base) -> EngineSpec:
    return EngineSpec("transformers", base.path, base.model_name, base.digest, dtype="float32")


async def _start_session(spec: EngineSpec, base: Base, workspace: Workspace, *_: Any) -> Session:
    sessions, processes = _STARTED[workspace.root]
    engine = StagedEngine([base.model_name])
    runner = web.AppRunner(engine.app(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    process = Process(spec, engine.url, workspace.logs / "engine.log", runner)
    sessions.append(engine)
    processes.append(process)
    return Session(process, (EngineClient(engine.url),), base, signature(spec, VERSION))  # type: ignore[arg-type]


async def _serve(
    staged: tuple[Workspace, Registry, Base, tuple[AdapterRecord, ...]],
    changes: dict[str, Any],
    started: Future[Staged],
) -> None:
    workspace, registry, base, adapters = staged
    sessions, processes = _STARTED[workspace.root] = ([], [])
    try:
        with serve_lock(workspace) as lock:
            gateway = build_app(profile_of(**{"engine": FLOAT32, **changes}), workspace)
            gateway.stopping = asyncio.Event()  # type: ignore[attr-defined]
            await gateway.start()
            listener = bind("127.0.0.1", 0)
            server = uvicorn.Server(uvicorn.Config(gateway, lifespan="off", log_config=None, ws="none"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            url = url_of(listener)
            tell_owner(lock, url)
            announce_running(workspace, url, gateway.control.fleet.session.signature)
            loop = asyncio.get_running_loop()
            client = httpx.Client(timeout=30, limits=httpx.Limits(max_connections=64))
            started.set_result(
                Staged(url, gateway, workspace, registry, base, adapters, loop, sessions, processes, client)
            )
            await gateway.stopping.wait()  # type: ignore[attr-defined]
            server.should_exit = True
            await serving
            await gateway.stop()
    except BaseException as error:
        if not started.done():
            started.set_exception(error)
        raise
