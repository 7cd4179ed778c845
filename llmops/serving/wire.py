"""uvicorn's protocol on llhttp, with what it leaves out: an end to heads that are endless, or that never come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers that is not whole yet; then the connection ends."""
HEAD_S = 20.0
"""For a head to come whole, from the connection's start or the head's first byte; then the connection ends."""


LOST = "llmops.lost"
"""Key in a request's scope: a set of functions that are called when its connection is lost."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = True
    _n_head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._lost: set[Callable[[], None]] = set()
        self._head_timer = self.loop.call_later(HEAD_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_timer()
        super().connection_lost(exc)
        for call in tuple(self._lost):
            call()

    def data_received(self, data: bytes) -> None:
        """Bytes have come; a body may come with its head, so what counts is a head that is not whole after them."""
        self._n_head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            self._n_head_bytes = 0
        elif self._n_head_bytes > MAX_HEAD_BYTES:
            self._end()
        elif self._n_head_bytes and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._end)

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._in_head = False
        self._stop_timer()
        self.scope[LOST] = self._lost  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is whole; the next head may follow."""
        super().on_message_complete()
        self._in_head = True
        self._n_head_bytes = 0

    def _end(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.send_400_response("The head of the request is too large, or did not come in time.")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
