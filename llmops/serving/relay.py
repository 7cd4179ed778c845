"""The relay: one completion request from a client to the engine and its answer back.

A client that leaves ends the engine's work at once, whether it waits for the first token, reads a stream, or
waits for a whole answer: its connection is watched beside the work, and the work is cancelled.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from llmops.records import Principal
from llmops.serving.access import Access
from llmops.serving.exchange import Exchange, engine_refusal
from llmops.serving.http import (
    JSON_TYPE,
    ClientGone,
    Header,
    Receive,
    Refusal,
    Scope,
    Send,
    header,
    parse_object,
    read_body,
    respond,
)
from llmops.serving.limits import BYTES_PER_TOKEN
from llmops.serving.metrics import Metrics
from llmops.serving.profile import ServeProfile
from llmops.serving.request_log import Entry, RequestLog
from llmops.serving.requests import check
from llmops.serving.rollout.router import Router
from llmops.serving.rollout.trip import Trip
from llmops.serving.routes import Asker, Live

ENGINE_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
KEEPALIVE_S = 3.0  # below the 5 s after which vLLM closes an idle connection
CLIENT_CLOSED = 499
AWAY = "engine_unavailable"
SESSION_HEADER, MAX_SESSION_BYTES = b"x-llmops-session", 128


@dataclass(frozen=True)
class Notes:
    """What is known of a request beside its bytes."""

    entry: Entry
    headers: list[Header]
    principal: Principal


class Relay:
    """Answers /v1/chat/completions and /v1/completions."""

    def __init__(
        self, live: Live, profile: ServeProfile, access: Access, log: RequestLog, metrics: Metrics
    ) -> None:
        """Relay by the table in `live`. Call `open` in the event loop."""
        self._live = live
        self._limits = profile.limits
        self._timeout = aiohttp.ClientTimeout(total=profile.timeouts.answer_s, sock_connect=5)
        self._access = access
        self._log = log
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None
        self.router = Router(live, self._ask, self._note)
        self.n_running = 0

    def open(self) -> None:
        """Make the connection pool to the engine."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, headers=ENGINE_HEADERS
        )

    async def close(self) -> None:
        """Close the pool; what still runs on it fails."""
        await self.router.shadows.close()
        if self._session is not None:
            await self._session.close()

    async def complete(self, scope: Scope, receive: Receive, send: Send, principal: Principal) -> None:
        """Answer one request, and log and count it whatever becomes of it."""
        entry = Entry(request_id(scope), scope["path"], time.perf_counter())
        entry.key, entry.tenant = principal.key, principal.tenant
        headers: list[Header] = [(b"x-request-id", entry.request_id.encode())]
        self.n_running += 1
        try:
            await self._complete(scope, receive, send, Notes(entry, headers, principal))
        except Refusal as refusal:
            entry.status, entry.error = refusal.status, refusal.logged
            await respond(send, refusal.status, [JSON_TYPE, *headers, *refusal.headers()], refusal.body())
        except ClientGone:
            entry.status, entry.error = CLIENT_CLOSED, "the client left"
        except asyncio.CancelledError:
            entry.status, entry.error = 503, "serving stopped before the answer was whole"
            raise
        finally:
            self.n_running -= 1
            entry.end()
            self._note(entry)
            self._live.meter.observe(entry)
            self._access.settle(entry)

    def _note(self, entry: Entry) -> None:
        """Log and count a request that is over, the client's own or one beside it."""
        self._log.add(entry)
        self._metrics.observe(entry)

    async def _complete(self, scope: Scope, receive: Receive, send: Send, notes: Notes) -> None:
        entry, headers = notes.entry, notes.headers
        if self.n_running > self._limits.max_requests:
            raise Refusal(
                429, f"{self._limits.max_requests} requests are under way; try again", None, "busy", 1
            )
        entry.charge = self._access.admit(notes.principal)
        body = await read_body(scope, receive, self._limits.max_body_bytes)
        entry.n_prompt_estimate = len(body) // BYTES_PER_TOKEN
        call = check(parse_object(body), scope["path"].endswith("/chat/completions"), self._limits)
        table = self._live.table
        entry.stream = call.stream
        entry.model = call.asked[:200]
        entry.user = call.user
        headers.append(table.version_header)
        entry.route_version = table.version
        self._access.accept(notes.principal, call, entry, table)
        choice = table.choose(call.asked, Asker(_session(scope), call.user, entry.tenant))
        entry.known, entry.propensity = True, choice.propensity
        over = asyncio.Event() if choice.shadow is not None else None
        trip = Trip(scope["path"], call, table, choice, entry, headers, len(headers), send, over)
        try:
            async with until_gone(receive):
                exchange, whole = await self.router.answer(trip)
            await exchange.finish(whole)
        finally:
            if over is not None:
                over.set()

    async def _ask(self, path: str, exchange: Exchange) -> bytes | None:
        """Ask the engine; a stream is relayed here and gives None, else the whole body to send.

        Raises:
            Refusal: the engine refused, is gone, or took too long; nothing was sent to the client yet.
        """
        lost = Refusal(502, "the engine was lost before the answer was whole", code="engine_lost")
        retried = False
        while True:
            try:
                return await self._ask_once(path, exchange)
            except aiohttp.ServerDisconnectedError:
                if not (retried or exchange.started):
                    retried = True  # most likely an idle connection that the engine had closed
                    continue
                failure = lost
            except aiohttp.ClientConnectorError:
                failure = lost if retried else Refusal(503, "the engine is not reachable", None, AWAY, 2)
            except TimeoutError:
                failure = Refusal(
                    504, f"no whole answer within {self._timeout.total:g} s", code="engine_timeout"
                )
            except (aiohttp.ClientError, OSError):
                failure = lost
            if not exchange.started:
                raise failure
            await exchange.break_off(failure)
            return None

    async def _ask_once(self, path: str, exchange: Exchange) -> bytes | None:
        assert self._session is not None
        async with self._session.post(self._live.engine_url + path, data=exchange.data) as answer:
            if answer.status == 200 and exchange.call.stream:
                await exchange.begin()
                async for data in answer.content.iter_any():
                    await exchange.relay(data)
                return None
            body = await answer.read()
        if answer.status != 200:
            raise engine_refusal(answer.status, body)
        return exchange.whole(body)


@asynccontextmanager
async def until_gone(receive: Receive) -> AsyncIterator[None]:
    """Run the block, but cancel it as soon as the client leaves.

    Raises:
        ClientGone: it left.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


def _session(scope: Scope) -> str | None:
    """The session a client names, to be kept on one arm.

    Raises:
        Refusal: 400 when it is longer than an id.
    """
    given = header(scope, SESSION_HEADER)
    if given is not None and len(given) > MAX_SESSION_BYTES:
        message = f"header x-llmops-session: {len(given)} bytes; use an id of at most {MAX_SESSION_BYTES}"
        raise Refusal(400, message, "x-llmops-session", "invalid_header")
    return given.decode("latin-1") if given else None


def request_id(scope: Scope) -> str:
    """The client's x-request-id when it is short and plain, else a new one."""
    given = header(scope, b"x-request-id")
    if given and len(given) <= 128 and given.isascii() and given.decode().isprintable():
        return given.decode()
    return uuid.uuid4().hex
