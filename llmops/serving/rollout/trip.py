"""One request on its way: what it asks, who was chosen, and what the client is told about who answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from llmops.serving.exchange import Exchange, Tap
from llmops.serving.http import Header, Send
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call
from llmops.serving.routes import Choice, RouteTable, Side
from llmops.serving.target import Target


@dataclass(frozen=True)
class Trip:
    """A checked request, the side and the table of it that it was routed by, and where its answer goes.

    `entry` and `headers` are filled in on the way; the first `n_own` headers stay, whoever answers. `over` is set when
    the client has its answer, or never gets one; only a shadow waits for that, and without it there is none. `taps`
    gather the answer that the client gets.
    """

    path: str
    call: Call
    side: Side
    table: RouteTable
    choice: Choice
    entry: Entry
    headers: list[Header]
    n_own: int
    send: Send
    over: asyncio.Event | None = None
    taps: tuple[Tap, ...] = ()

    def answered_by(self, target: Target, arm: str) -> None:
        """Note who answers now, in the log's entry and in the headers; a later call takes the place of an earlier."""
        entry = self.entry
        entry.answered_by, entry.arm, entry.lineage = target.digest, arm, self.table.lineage(target, arm)
        self.headers[self.n_own :] = self.table.headers(target, arm)

    def exchange(self, target: Target, arm: str) -> Exchange:
        """The request as this target gets it, with its answer going to the client."""
        self.answered_by(target, arm)
        exchange = Exchange(self.call, target, self.entry, self.headers, self.send)
        exchange.taps = self.taps
        return exchange

    def aside(self, target: Target, arm: str) -> Entry:
        """A log entry for asking a target beside the client's own answer."""
        entry = Entry(self.entry.request_id, self.path, self.entry.started)
        entry.known, entry.model, entry.route_version = True, self.entry.model, self.table.version
        entry.key, entry.tenant, entry.user = self.entry.key, self.entry.tenant, self.entry.user
        entry.answered_by, entry.arm = target.digest, arm
        entry.lineage = self.table.lineage(target, arm)
        return entry
