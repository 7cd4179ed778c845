"""A relay on loopback that hears who answers: for clients that throw the answers' headers away.

What it is asked goes to the endpoint unchanged and comes back unchanged; it counts the answers, and those that did not
come from the system, the prompt contract and the engine that they should.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from llmops.engines.endpoint import System
from llmops.schema import short
from llmops.settings import api_headers

PASSED_ON = ("content-type", "retry-after")
LARGEST_BYTES = 1 << 26


@dataclass
class Witness:
    """What was heard of the answers to one system; `url` is where to ask."""

    url: str
    system: System
    engine: str
    n_answers: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def hear(self, headers: dict[str, str]) -> None:
        """Count one answer by the digests in its headers."""
        self.n_answers += 1
        expected = {
            "model": self.system.digest,
            "prompt-contract": self.system.prompt_contract,
            "engine": self.engine,
        }
        for name, digest in expected.items():
            found = headers.get(f"x-llmops-{name}", "")
            if found != digest:
                self.wrong[f"{name} {short(found) or 'that does not say'}, not {short(digest)}"] += 1
                return

    def faults(self) -> list[str]:
        """Why the answers are no evidence about the system; empty when they are."""
        found = [f"{n} answers came from {what}" for what, n in sorted(self.wrong.items())]
        return found or ([] if self.n_answers else ["nothing was answered"])


@asynccontextmanager
async def witness(endpoint: str, system: System, engine: str) -> AsyncIterator[Witness]:
    """Relay to the endpoint at `endpoint` while the block runs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def relay(request: web.Request) -> web.Response:
            data = await request.read()
            kind = request.headers.get("content-type", "application/json")
            headers = {"content-type": kind, **api_headers()}
            async with session.post(endpoint + request.path, data=data, headers=headers) as answer:
                raw = await answer.read()
            if answer.status == 200:
                heard.hear({name.lower(): value for name, value in answer.headers.items()})
            passed = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
            return web.Response(body=raw, status=answer.status, headers=passed)

        application = web.Application(client_max_size=LARGEST_BYTES)
        application.add_routes(
            [web.post(f"/v1/{path}", relay) for path in ("chat/completions", "completions")]
        )
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            heard = Witness(f"http://{host}:{port}", system, engine)
            yield heard
        finally:
            await runner.cleanup()
