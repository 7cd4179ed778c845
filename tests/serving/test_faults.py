"""Faults of the engine under load: every request gets an answer or an error it can read, and nothing is left over."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, deque
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from tests.serving.bare import Bare, bare_gateway

TEXT = "one two three"
SLOW_S = 30.0
N_AT_ONCE = 32


class Faulty:
    """Answers as the scripted engine does, but for a share of requests, drawn by a seed."""

    def __init__(self, bare: Bare, share: float) -> None:
        self._engine, self._share, self._draw = bare.engine, share, random.Random(1)
        self.counts: Counter[str] = Counter()
        self._engine.asked, self._engine.headers = deque(maxlen=8), deque(maxlen=8)  # type: ignore[assignment]
        self._engine.reply = self.reply

    async def reply(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        stream = bool(body.get("stream"))
        if self._draw.random() >= self._share:
            return await (self._engine._stream(request, body) if stream else self._engine._whole(body))
        fault = self._draw.choice(["slow", "cut", "malformed", "failed", "dropped"])
        self.counts[fault] += 1
        return await getattr(self, f"_{fault}")(request, stream)  # type: ignore[no-any-return]

    async def _slow(self, _request: web.Request, _stream: bool) -> web.StreamResponse:
        await asyncio.sleep(SLOW_S)
        raise web.HTTPServiceUnavailable

    async def _cut(self, request: web.Request, stream: bool) -> web.StreamResponse:
        """Half an answer, then nothing."""
        answer = web.StreamResponse(
            headers={"content-type": "text/event-stream"} if stream else {"content-length": "99"}
        )
        await answer.prepare(request)
        await answer.write(b'data: {"model":"x","choices":[]}\n\ndata: {"mod' if stream else b'{"model":')
        assert request.transport is not None
        request.transport.close()
        return answer

    async def _malformed(self, request: web.Request, stream: bool) -> web.StreamResponse:
        if not stream:
            return web.Response(text="[1, 2", content_type="application/json")
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'data: {"usage": {]}\n\n: comment\n\ndata: no json "error"\n\n')
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _failed(self, _request: web.Request, _stream: bool) -> web.StreamResponse:
        return web.json_response({"error": {"message": "out of memory"}}, status=500)

    async def _dropped(self, request: web.Request, _stream: bool) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()


async def _ask(session: aiohttp.ClientSession, url: str, stream: bool) -> str:
    """What a client makes of one request: its text, or the code of the error it was told."""
    body = {"model": "docs", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    async with session.post(url + "/v1/chat/completions", json=body) as answer:
        raw = await answer.read()
    if answer.status != 200:
        return str(json.loads(raw)["error"]["code"])
    if not stream:
        return str(json.loads(raw)["choices"][0]["message"]["content"])
    text, last = "", ""
    for event in raw.decode().split("\n\n")[:-1]:
        last = event.removeprefix("data: ")
        try:
            data = json.loads(last)
        except ValueError:
            continue
        if "error" in data:
            return str(data["error"]["code"])
        text += "".join(choice["delta"].get("content", "") for choice in data["choices"])
    return text if last == "[DONE]" else "ended without a word"


async def _ask_all(url: str, n: int) -> Counter[str]:
    said: Counter[str] = Counter()
    numbers = iter(range(n))
    connector = aiohttp.TCPConnector(limit=N_AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            for i in numbers:
                said[await _ask(session, url, stream=i % 2 == 0)] += 1

        await asyncio.gather(*(work() for _ in range(N_AT_ONCE)))
    return said


def _run(tmp_path: Path, n: int, share: float) -> None:
    timeouts = {"answer_s": 3}
    with bare_gateway(tmp_path, timeouts=timeouts) as bare:
        faulty = Faulty(bare, share)
        said = asyncio.run(_ask_all(bare.url, n))
        assert said.total() == n
        known = {TEXT, "", "engine_lost", "engine_broke", "engine_error", "deadline_exceeded"}
        assert said.keys() <= known, said
        assert n - said[TEXT] <= faulty.counts.total()  # a dropped idle connection may be asked again
        assert said[TEXT] >= n * (1 - share) * 0.95
        assert said["deadline_exceeded"] == faulty.counts["slow"]
        assert min(faulty.counts.values()) > 0
        lines = bare.logged()
        assert len(lines) == n
        assert {line["status"] for line in lines} <= {200, 502, 504}
        assert all(line["duration_ms"] is not None for line in lines)
        relay = bare.gateway.relay
        assert (relay.n_running, relay.admission.n_running, relay.admission.n_waiting) == (0, 0, 0)
        assert bare.gateway.live.in_flight.total() == 0
        bare.engine.reply = None
        assert bare.chat().json()["choices"][0]["message"]["content"] == TEXT


def test_faults_of_the_engine_reach_clients_as_errors_and_leave_nothing_behind(tmp_path: Path) -> None:
    _run(tmp_path, 300, 0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_requests_with_one_fault_in_a_hundred(tmp_path: Path) -> None:
    _run(tmp_path, 10_000, 0.01)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_a_hundred_thousand_requests(tmp_path: Path) -> None:
    """Gateway, engine and clients share the process; after the first fifth nothing may gather."""
    with bare_gateway(tmp_path, timeouts={"answer_s": 3}) as bare:
        Faulty(bare, 0.001)
        process = psutil.Process()
        asyncio.run(_ask_all(bare.url, 20_000))
        settled = process.memory_info().rss
        asyncio.run(_ask_all(bare.url, 80_000))
        grown = process.memory_info().rss - settled
        assert grown < 16 * 1024 * 1024, f"{grown / 2**20:.1f} MiB over 80,000 requests"
