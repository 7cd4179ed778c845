"""HTTP/1.1 to an engine on llhttp: a POST, its answer's pieces as they come, connections kept for the next one.

A general client's URLs, cookies, redirects and hooks were a third of what a relayed request cost
(`bench/gateway.py`), and an engine needs none of them. What is left: chunked and counted bodies, answers that end with
the connection, TLS, back-pressure, and an end to the connection when the caller leaves before the answer is whole,
which stops the engine's work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httptools

KEEPALIVE_S = 3.0  # below the 5 s after which vLLM closes an idle connection
CONNECT_S = 5.0
HIGH_WATER_BYTES = 256 * 1024


class NotReached(Exception):
    """No connection could be made."""


class Dropped(Exception):
    """The connection ended before a byte of an answer: most likely the engine had closed it while it was idle."""


class Broken(Exception):
    """The answer was cut off, or is no HTTP."""


class Answer(asyncio.Protocol):
    """One connection, and the answer that comes on it; use as an async context manager once it is begun."""

    def __init__(self, pool: Pool, origin: str) -> None:
        """Belong to a pool."""
        self.idle_since = 0.0
        self.closed = False
        self.status = 0
        self._pool, self._origin = pool, origin
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._n_bytes = 0
        self._paused = self._begun = self._whole = self._broken = self._counted = self._keep = False

    def begin(self, data: bytes) -> None:
        """Send a request, whose answer is awaited from now on."""
        self.status = 0
        self._begun = self._whole = self._counted = self._keep = False
        self._transport.write(data)

    async def headers(self) -> None:
        """Return when `status` is known.

        Raises:
            Dropped, Broken: it will not be.
        """
        while not self.status:
            if self.closed or self._broken:
                raise Broken if self._begun else Dropped
            await self._wait()

    async def next(self) -> bytes:
        """The body's bytes that have come, at least one; empty at its end.

        Raises:
            Broken: the answer ends before its end.
        """
        while True:
            if self._parts:
                data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._n_bytes = 0
                if self._paused:
                    self._paused = False
                    self._transport.resume_reading()
                return data
            if self._whole:
                return b""
            if self.closed or self._broken:
                raise Broken
            await self._wait()

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            Broken: the answer ends before its end.
        """
        data = await self.next()
        while more := await self.next():
            data += more
        return data

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __aenter__(self) -> Self:
        """Begin to read."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the connection for another request, or end it when its answer is not whole."""
        if self._whole and self._keep and not self.closed and not self._parts:
            self._pool.keep(self._origin, self)
        else:
            self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self.closed = True
        self._pool.drop(self)
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine has taken the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._broken = True
            self._transport.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone; an answer without a length is whole then."""
        self.closed = True
        if exc is None and self.status and not self._counted and not self._broken:
            self._whole = True
        self._wake()

    # ------------------------------------------------------------ llhttp's side

    def on_header(self, name: bytes, _value: bytes) -> None:
        """One header of the answer."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._counted = True

    def on_headers_complete(self) -> None:
        """The head of the answer is whole."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A piece of the body; too much that nobody takes stops the reading."""
        self._parts.append(data)
        self._n_bytes += len(data)
        if self._n_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._whole = True
        self._keep = self._parser.should_keep_alive()


class Pool:
    """Connections to engines, by their address."""

    def __init__(self) -> None:
        """Begin without any."""
        self._idle: dict[str, list[Answer]] = {}
        self._all: set[Answer] = set()

    async def post(self, origin: str, path: str, body: bytes, headers: Mapping[str, str] | None) -> Answer:
        """Post JSON to `origin` (`http://HOST:PORT`); gives the answer once its status is known.

        Raises:
            NotReached, Dropped, Broken: see there.
        """
        answer = self._take(origin) or await self._connect(origin)
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
        head = f"{_head(origin, path)}content-length: {len(body)}\r\n{extra}\r\n"
        try:
            answer.begin(head.encode() + body)
            await answer.headers()
        except BaseException:
            answer.abort()
            raise
        return answer

    def keep(self, origin: str, answer: Answer) -> None:
        """Take a connection back whose answer was read."""
        answer.idle_since = time.monotonic()
        self._idle.setdefault(origin, []).append(answer)

    def drop(self, answer: Answer) -> None:
        """Forget a connection."""
        self._all.discard(answer)

    def close(self) -> None:
        """End all connections; what still runs on one fails."""
        for answer in tuple(self._all):
            answer.abort()
        self._idle.clear()

    def _take(self, origin: str) -> Answer | None:
        idle = self._idle.get(origin)
        while idle:
            answer = idle.pop()
            if not answer.closed and time.monotonic() - answer.idle_since < KEEPALIVE_S:
                return answer
            answer.abort()
        return None

    async def _connect(self, origin: str) -> Answer:
        address = urlsplit(origin)
        secure = address.scheme == "https"
        port = address.port or (443 if secure else 80)
        connecting = asyncio.get_running_loop().create_connection(
            lambda: Answer(self, origin), address.hostname or "", port, ssl=secure or None
        )
        try:
            _, answer = await asyncio.wait_for(connecting, CONNECT_S)
        except (OSError, TimeoutError) as error:
            raise NotReached(str(error)) from error
        self._all.add(answer)
        return answer


@lru_cache(64)
def _head(origin: str, path: str) -> str:
    host = urlsplit(origin).netloc
    kind = "content-type: application/json\r\naccept-encoding: identity\r\n"
    return f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{kind}"
