"""The other side of the evaluation client: an HTTP server in OpenAI's shape with llmops' headers, all scripted.

It stands in for no model: the test gives what it answers, so that scores, differences and faults are known.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from llmops.records import AdapterRecord, EngineSignature
from llmops.registry.bases import Base
from llmops.schema import digest_of


@dataclass
class Counterpart:
    """What the server says and saw. `script(model, prompt, nth)` gives a text, or a fault to commit the nth time."""

    base: Base
    engine: EngineSignature
    adapters: dict[str, AdapterRecord]
    script: Callable[[str, str, int], str | Fault]
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    loaded: set[str] = field(default_factory=set)
    n_status: int = 0
    engine_after: EngineSignature | None = None
    refuse_adapters: tuple[int, str] | None = None
    n_at_once: int = 0
    most_at_once: int = 0
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def digest(self, model: str) -> str:
        return next((r.adapter for r in self.adapters.values() if r.model_name == model), self.base.digest)

    async def status(self, request: web.Request) -> web.Response:
        self.n_status += 1
        engine = self.engine_after if self.n_status > 1 and self.engine_after else self.engine
        base = {
            "model": self.base.model_name,
            "digest": self.base.digest,
            "prompt_contract": self.base.contract.digest(),
        }
        return web.json_response({"engine": engine.to_pairs(), "base": base, "adapters": []})

    async def add(self, request: web.Request) -> web.Response:
        reference = (await request.json())["adapter"]
        if self.refuse_adapters:
            status, message = self.refuse_adapters
            return web.json_response({"error": {"message": message}}, status=status)
        self.loaded.add(self.adapters[reference].model_name)
        return web.json_response(
            {"model": self.adapters[reference].model_name, "adapter": reference, "proof": {}}
        )

    async def models(self, request: web.Request) -> web.Response:
        names = [self.base.model_name, *sorted(self.loaded)]
        return web.json_response({"object": "list", "data": [{"id": name} for name in names]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model, prompt = body["model"], body["messages"][-1]["content"]
        self.asked.append((model, prompt))
        self.bodies.append(body)
        self._counts[model, prompt] += 1
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        await asyncio.sleep(0)
        try:
            said = self.script(model, prompt, self._counts[model, prompt])
        finally:
            self.n_at_once -= 1
        fault = said if isinstance(said, Fault) else Fault(text=said)
        if fault.cut:
            assert request.transport is not None
            request.transport.abort()
        if fault.status != 200:
            return web.json_response(
                {"error": {"message": fault.message}}, status=fault.status, headers=fault.headers
            )
        if fault.raw is not None:
            return web.Response(body=fault.raw, content_type="application/json", headers=self._headers(model))
        message: dict[str, Any] = {"role": "assistant", "content": fault.text}
        if fault.calls:
            message = {"role": "assistant", "content": None, "tool_calls": [spelt(*c) for c in fault.calls]}
        answer = {
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(fault.text.split())},
        }
        return web.json_response(answer, headers=self._headers(model) | fault.headers)

    def _headers(self, model: str) -> dict[str, str]:
        return {
            "x-llmops-model": self.digest(model),
            "x-llmops-prompt-contract": self.base.contract.digest(),
            "x-llmops-engine": digest_of(self.engine.to_pairs()),
        }


@dataclass(frozen=True)
class Fault:
    """How an answer goes wrong."""

    text: str = ""
    status: int = 200
    message: str = "scripted"
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: bool = False
    calls: tuple[tuple[str, str], ...] = ()


def spelt(name: str, arguments: str) -> dict[str, Any]:
    """A tool call as OpenAI's API has it."""
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


@contextmanager
def served(counterpart: Counterpart) -> Iterator[Counterpart]:
    """Run the server on a free loopback port in a thread of its own."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    application = web.Application(client_max_size=1 << 26)
    application.add_routes(
        [
            web.get("/llmops/status", counterpart.status),
            web.post("/llmops/adapters", counterpart.add),
            web.get("/v1/models", counterpart.models),
            web.post("/v1/chat/completions", counterpart.chat),
        ]
    )
    runner = web.AppRunner(application, access_log=None)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        counterpart.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield counterpart
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
