"""More than the engine can take: who waits, who is refused, what a deadline ends, and how serving stops."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.serving.bare import Bare, bare_gateway, target
from tests.serving.gateway import wait_for


class Gate:
    """Lets the engine answer only once it is open."""

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self._open = bare.run(self._event())
        bare.engine.reply = self._reply

    async def _event(self) -> asyncio.Event:
        return asyncio.Event()

    async def _reply(self, request: Any, body: dict[str, Any]) -> Any:
        await self._open.wait()
        engine = self._bare.engine
        return await (engine._stream(request, body) if body.get("stream") else engine._whole(body))

    def open(self) -> None:
        self._bare.loop.call_soon_threadsafe(self._open.set)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def asked(bare: Bare, pool: ThreadPoolExecutor, text: str, **headers: str) -> Future[httpx.Response]:
    """A chat under way, whose text says which it is."""
    return pool.submit(bare.chat, "docs", text, headers=headers)


def at_engine(bare: Bare) -> list[str]:
    return [body["messages"][-1]["content"] for body in bare.engine.asked]


def waiting(bare: Bare) -> int:
    return bare.gateway.relay.admission.n_waiting


def test_request_beyond_the_places_waits_and_one_beyond_the_queue_is_refused(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with bare_gateway(tmp_path, limits={"max_requests": 1, "max_waiting": 1}) as bare:
        gate = Gate(bare)
        first = asked(bare, pool, "first")
        wait_for(lambda: at_engine(bare) == ["first"])
        second = asked(bare, pool, "second")
        wait_for(lambda: waiting(bare) == 1)
        third = bare.chat("docs", "third")
        assert (third.status_code, third.json()["error"]["code"]) == (429, "queue_full")
        assert int(third.headers["retry-after"]) >= 1
        assert at_engine(bare) == ["first"]
        gate.open()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert at_engine(bare) == ["first", "second"]
        by_status = {line["status"]: line for line in bare.logged()}
        assert by_status[429]["queue_ms"] is None
        assert max(line["queue_ms"] or 0 for line in bare.logged()) > 0
        admission = bare.gateway.relay.admission
        assert (admission.n_running, admission.n_waiting) == (0, 0)


def test_wait_for_a_place_ends_with_503_and_when_to_come_back(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with bare_gateway(tmp_path, limits={"max_requests": 1}, timeouts={"queue_s": 0.05}) as bare:
        gate = Gate(bare)
        first = asked(bare, pool, "first")
        wait_for(lambda: at_engine(bare) == ["first"])
        second = bare.chat("docs", "second")
        assert (second.status_code, second.json()["error"]["code"]) == (503, "queue_timeout")
        assert int(second.headers["retry-after"]) >= 1
        assert waiting(bare) == 0
        gate.open()
        assert first.result().status_code == 200
        assert bare.chat("docs", "third").status_code == 200
        assert "second" not in at_engine(bare)


def test_client_that_leaves_the_queue_never_reaches_the_engine(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with bare_gateway(tmp_path, limits={"max_requests": 1}) as bare:
        gate = Gate(bare)
        first = asked(bare, pool, "first")
        wait_for(lambda: at_engine(bare) == ["first"])
        body = {"model": "docs", "messages": [{"role": "user", "content": "second"}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{bare.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.1))
        wait_for(lambda: waiting(bare) == 0)
        gate.open()
        assert first.result().status_code == 200
        assert bare.chat("docs", "third").status_code == 200
        assert at_engine(bare) == ["first", "third"]
        assert {line["status"] for line in bare.logged()} == {200, 499}


def test_low_priority_begins_only_when_few_others_run_and_after_them(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with bare_gateway(tmp_path, limits={"max_requests": 2, "max_low_priority": 1}) as bare:
        gate = Gate(bare)
        requests = [asked(bare, pool, "one")]
        wait_for(lambda: at_engine(bare) == ["one"])
        requests.append(asked(bare, pool, "low", **{"x-llmops-priority": "low"}))
        wait_for(lambda: waiting(bare) == 1)
        requests.append(asked(bare, pool, "two"))
        wait_for(lambda: at_engine(bare) == ["one", "two"])
        assert waiting(bare) == 1
        gate.open()
        assert all(request.result().status_code == 200 for request in requests)
        assert at_engine(bare) == ["one", "two", "low"]


@pytest.mark.parametrize("stream", [False, True])
def test_deadline_of_a_client_ends_the_engine_s_work(tmp_path: Path, stream: bool) -> None:
    with bare_gateway(tmp_path) as bare:
        bare.engine.chunk_s = 0.2
        answer = bare.chat("docs", stream=stream, headers={"x-llmops-deadline-s": "0.3"})
        if stream:
            events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
            assert json.loads(events[0])["choices"][0]["delta"]["content"] == "one"
            assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        wait_for(lambda: bare.engine.n_lost == 1)
        assert "no whole answer within 0.3 s" in bare.logged()[-1]["error"]


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan"])
def test_deadline_that_is_no_time_is_refused(tmp_path: Path, given: str) -> None:
    with bare_gateway(tmp_path) as bare:
        answer = bare.chat("docs", headers={"x-llmops-deadline-s": given})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-llmops-deadline-s")
        assert bare.engine.asked == []


def test_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    with bare_gateway(tmp_path, timeouts={"body_s": 0.1}) as bare:
        host, port = bare.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + b'Content-Length: 99\r\n\r\n{"model":')
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_stop_finishes_what_it_can_and_tells_the_rest(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with bare_gateway(tmp_path) as bare:
        bare.engine.chunk_s = 0.3
        answer = pool.submit(bare.chat, "docs", stream=True)
        whole = asked(bare, pool, "whole")
        wait_for(lambda: len(bare.engine.asked) == 2)
        bare.run(bare.gateway.relay.drain(0.4))
        events = [line.removeprefix("data: ") for line in answer.result().text.splitlines() if line]
        assert json.loads(events[-1])["error"]["code"] == "stopping"
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "stopping")
        wait_for(lambda: bare.engine.n_lost == 2)
        bare.engine.chunk_s = 0.0
        later = asked(bare, pool, "later")
        bare.run(bare.gateway.relay.drain(5.0))
        assert later.result().status_code == 200


@pytest.mark.parametrize(("n_bare", "status"), [(2, 200), (99, 503)])
def test_replica_that_came_back_bare_is_asked_past(tmp_path: Path, n_bare: int, status: int) -> None:
    with bare_gateway(tmp_path) as bare:

        async def reply(_request: Any, body: dict[str, Any]) -> Any:
            if len(bare.engine.asked) <= n_bare:
                return web.json_response({"error": {"message": "The model does not exist."}}, status=404)
            return await bare.engine._whole(body)

        bare.engine.reply = reply
        answer = bare.chat()
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status == 503)
        assert len(bare.engine.asked) == min(n_bare + 1, 5)


def test_engine_hears_of_the_client_s_trace(tmp_path: Path) -> None:
    with bare_gateway(tmp_path) as bare:
        parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert bare.chat("docs", headers={"traceparent": parent, "tracestate": "a=b"}).status_code == 200
        assert bare.engine.headers[-1]["traceparent"] == parent
        assert bare.engine.headers[-1]["tracestate"] == "a=b"
        assert bare.chat("docs").status_code == 200
        assert "traceparent" not in bare.engine.headers[-1]
        assert bare.engine.asked[-1]["model"] == target("docs").engine_name
