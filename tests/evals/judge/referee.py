"""The other side of a judge's client: an OpenAI server whose every verdict the test scripts; keeps what it saw."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.evals.counterpart import Fault


@dataclass(frozen=True)
class Seen:
    """A prompt taken apart at its fences: what is asked, and the answers in the order they were shown."""

    prompt: str
    request: str
    answers: tuple[str, ...]


def seen(prompt: str) -> Seen:
    """What a rendered default template shows, references left out; of another template the prompt alone."""
    blocks = dict(re.findall(r"\n([^\n]+):\n<<<[0-9a-f]{16}\n(.*?)\n>>>[0-9a-f]{16}", prompt, re.DOTALL))
    answers = [text for title, text in blocks.items() if title in ("Answer A", "Answer B", "The answer")]
    return Seen(prompt, blocks.get("The request", ""), tuple(answers))


Script = Callable[[Seen, int], str | Fault]
"""What is said to a prompt, or done wrong, the nth time any is asked (from 1)."""


@dataclass
class Referee:
    """What the server says and saw."""

    script: Script
    model: str = "judge-large-2026"
    has_schema: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    message: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    down: bool = False
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.down:
            return web.json_response({"error": {"message": "down"}}, status=503)
        self.keys.append(request.headers.get("authorization"))
        if "response_format" in body and not self.has_schema:
            message = "response_format is not supported"
            return web.json_response({"error": {"message": message}}, status=400)
        self.bodies.append(body)
        said = self.script(seen(body["messages"][0]["content"]), len(self.bodies))
        fault = said if isinstance(said, Fault) else Fault(text=said)
        if fault.status != 200:
            return web.json_response({"error": {"message": fault.message}}, status=fault.status)
        message = {"role": "assistant", "content": fault.text, **self.message}
        answer = {
            "model": self.model,
            "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }
        return web.json_response(answer, headers=self.headers)


@contextmanager
def refereeing(referee: Referee) -> Iterator[Referee]:
    """Run the server on a free loopback port in a thread of its own."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    application = web.Application()
    application.add_routes([web.post("/v1/chat/completions", referee.chat)])
    runner = web.AppRunner(application, access_log=None)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        referee.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[attr-defined]
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
        yield referee
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def verdict(said: str) -> str:
    """A verdict as a judge should spell it."""
    return json.dumps({"reason": "so it is", "verdict": said})


def perfect(shown: Seen, nth: int) -> str:
    """Prefers the answer that is the reference (`question i` -> `answer i`); a tie where both or none is."""
    right = [text.strip() == shown.request.replace("question", "answer") for text in shown.answers]
    return verdict("tie" if right[0] == right[1] else "A" if right[0] else "B")
