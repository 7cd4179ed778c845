"""The real gateway over real HTTP in front of a scripted engine, both in a thread of this process: up in tens of
milliseconds, and every answer is known beforehand. What an engine computes is tested with real ones."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from llmops.listening import bind
from llmops.records import PromptContract
from llmops.serving.app import Gateway
from llmops.serving.profile import ServeProfile
from llmops.serving.routes import Route, RouteTable, Target
from llmops.serving.server import url_of, uvicorn_server
from llmops.settings import Workspace, find_workspace
from tests.serving.gateway import wait_for

CONTRACT = PromptContract("template", "0" * 64, (2,))
ENGINE_DIGEST = "e" * 64
Reply = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def target(name: str) -> Target:
    """A target that the scripted engine knows; `name` gives its digest, so that names differ as digests do."""
    digest = name.encode().hex().ljust(64, "0")[:64]
    return Target(f"{name}@{digest[:12]}", digest, CONTRACT, ENGINE_DIGEST)


@dataclass
class ScriptedEngine:
    """Answers completions with `words` one a chunk; `asked` keeps every body. Set `reply` to answer otherwise."""

    words: tuple[str, ...] = ("one", " two", " three")
    chunk_s: float = 0.0
    reply: Reply | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    n_lost: int = 0  # requests whose client left

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            if self.reply is not None:
                return await self.reply(request, body)
            return await (self._stream(request, body) if body.get("stream") else self._whole(body))
        except (asyncio.CancelledError, ConnectionError):
            self.n_lost += 1
            raise

    def _head(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": 1, "model": body["model"]}

    def _usage(self, n_completion: int) -> dict[str, int]:
        return {
            "prompt_tokens": 7,
            "completion_tokens": n_completion,
            "total_tokens": 7 + n_completion,
        }

    async def _whole(self, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(self.chunk_s * len(self.words))
        text = "".join(self.words)
        one: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        one |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        usage = self._usage(len(self.words))
        return web.json_response({**self._head(body, "chat.completion"), "choices": [one], "usage": usage})

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        head = self._head(body, "chat.completion.chunk")
        for i, word in enumerate(self.words):
            await asyncio.sleep(self.chunk_s)
            last = "stop" if i == len(self.words) - 1 else None
            said = {"delta": {"content": word}} if "messages" in body else {"text": word}
            choice = {"index": 0, **said, "finish_reason": last}
            await answer.write(_event({**head, "choices": [choice]}))
        await answer.write(_event({**head, "choices": [], "usage": self._usage(len(self.words))}))
        await answer.write(b"data: [DONE]\n\n")
        return answer


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class Bare:
    """A running gateway without control, its engine, and what both run in."""

    url: str
    gateway: Gateway
    engine: ScriptedEngine
    workspace: Workspace
    loop: asyncio.AbstractEventLoop
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))  # a new one costs 20 ms

    def chat(self, model: str = "docs", text: str = "Hi.", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", None)
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
        return self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def logged(self) -> list[dict[str, Any]]:
        """All lines of the request log; what waits is written first."""
        wait_for(lambda: not self.gateway.relay.n_running)  # an answer is there before its line
        self.run(self.gateway.log._flush())
        path = self.gateway.log.path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def run(self, work: Any) -> Any:
        """The result of a coroutine, run in the gateway's loop."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(30)


def profile_of(**changes: Any) -> ServeProfile:
    """A profile as YAML would give it."""
    return ServeProfile.model_validate(
        {"base_model": "none", "engine": {"kind": "transformers"}, "port": 0, **changes}
    )


def table_of(**names: str) -> RouteTable:
    """A table where each public name stands for the adapter of that name; all have operator names, and so has base."""
    targets = {model: target(model) for model in {*names.values(), "base"}}
    routes = {
        public: Route(public, targets[model].digest, "f" * 64, targets[model])
        for public, model in names.items()
    }
    return RouteTable(1, routes, {t.engine_name: t for t in targets.values()}, None)


@contextmanager
def bare_gateway(root: Path, table: RouteTable | None = None, **profile: Any) -> Iterator[Bare]:
    """Serve `table` (public name docs -> adapter docs without it) from a workspace in `root`; changes of the profile
    by name."""
    (root / "llmops.yaml").write_text("name: test\n")
    workspace = find_workspace(root)
    started: Future[Bare] = Future()
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(workspace, table or table_of(docs="docs"), profile, started))
    )
    thread.start()
    bare = started.result(30)
    try:
        yield bare
    finally:
        bare.client.close()
        bare.loop.call_soon_threadsafe(bare.gateway.stopping.set)  # type: ignore[attr-defined]
        thread.join(30)


async def _serve(
    workspace: Workspace, table: RouteTable, changes: dict[str, Any], started: Future[Bare]
) -> None:
    try:
        engine = ScriptedEngine()
        app = web.Application(client_max_size=1 << 26)
        for path in ("/v1/chat/completions", "/v1/completions"):
            app.router.add_post(path, engine.completions)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        gateway = Gateway(profile_of(**changes), workspace)
        gateway.live.table = table
        gateway.live.side.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        gateway.stopping = asyncio.Event()  # type: ignore[attr-defined]
        await gateway.open()
        profile = gateway.profile
        listener = bind(profile.host, 0)
        server = uvicorn_server(gateway, profile)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        loop = asyncio.get_running_loop()
        started.set_result(
            Bare(url_of(listener, "https" if profile.tls else "http"), gateway, engine, workspace, loop)
        )
    except BaseException as error:
        started.set_exception(error)
        raise
    await gateway.stopping.wait()  # type: ignore[attr-defined]
    server.should_exit = True
    await serving
    await gateway.close()
    await runner.cleanup()
