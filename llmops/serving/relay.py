"""The relay: one completion request from a client to the engine and its answer back.

A client that leaves ends the engine's work at once, whether it waits for a place, for the first token, reads a
stream, or waits for a whole answer; so do a deadline that passes and a gateway that stops (`leash`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmops.records import Principal
from llmops.serving.access import Access
from llmops.serving.admission import Admission
from llmops.serving.exchange import Exchange, break_off
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
from llmops.serving.leash import Leash
from llmops.serving.limits import BYTES_PER_TOKEN
from llmops.serving.metrics import CLIENT_CLOSED, Metrics
from llmops.serving.observer import HIT, Observed, Observer
from llmops.serving.profile import Limits, ServeProfile
from llmops.serving.request_log import Entry, RequestLog
from llmops.serving.requests import Call, check, check_embeddings
from llmops.serving.rollout.router import Router
from llmops.serving.rollout.trip import Trip
from llmops.serving.routes import Asker, Live, Side
from llmops.serving.tracing import Tracer
from llmops.serving.upstream import EMBEDDINGS, Upstream

LAST_WORD_S = 2.0
MAX_REQUEST_ID, MAX_HANDED_ON = 128, 512  # bytes
SESSION_HEADER, MAX_SESSION_BYTES = b"x-llmops-session", 128
DEADLINE_HEADER, PRIORITY_HEADER = b"x-llmops-deadline-s", b"x-llmops-priority"


@dataclass(frozen=True)
class Sinks:
    """Where what is known of requests goes: log, figures, limits and usage, what is kept, and traces, if any."""

    log: RequestLog
    metrics: Metrics
    access: Access
    observer: Observer
    tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class Notes:
    """What is known of a request beside its bytes; `side` is the one it was put to, None: whichever serves."""

    entry: Entry
    headers: list[Header]
    principal: Principal
    leash: Leash
    observed: Observed
    side: Side | None


class Relay:
    """Answers /v1/chat/completions, /v1/completions and /v1/embeddings."""

    def __init__(self, live: Live, profile: ServeProfile, sinks: Sinks) -> None:
        """Relay by the table in `live`, within the profile's limits and times."""
        self._live = live
        self._limits, self._timeouts = profile.limits, profile.timeouts
        self._log, self._metrics = sinks.log, sinks.metrics
        self._access, self._observer, self._tracer = sinks.access, sinks.observer, sinks.tracer
        self._upstream = Upstream()
        self.router = Router(live, self._upstream.ask, self._note)
        self.router.shadows.on_answer = sinks.observer.shadow
        self._leashes: set[Leash] = set()
        self.admission = Admission(self._limits, self._timeouts.queue_s)

    @property
    def n_running(self) -> int:
        """Requests under way: being read, waiting, or being answered."""
        return len(self._leashes)

    async def close(self) -> None:
        """End the connections to the engine; what still runs on them fails."""
        await self.router.shadows.close()
        self._upstream.close()

    async def drain(self, within_s: float) -> None:
        """Return when nothing runs any more; what does after `within_s` is cut off."""
        until = time.monotonic() + within_s
        while True:
            if not self._leashes or time.monotonic() > until:
                return self.cut_off()
            await asyncio.sleep(0.02)

    def cut_off(self) -> None:
        """End what runs now; its clients are told that serving stops."""
        for leash in list(self._leashes):
            leash.pull(Refusal(503, "serving stops; ask again shortly", None, "stopping", 5))

    async def complete(
        self, scope: Scope, receive: Receive, send: Send, principal: Principal, side: Side | None = None
    ) -> None:
        """Answer one request, by the engine of `side` if one is given, and log and count it whatever becomes of it."""
        entry = Entry(request_id(scope), scope["path"], time.perf_counter())
        entry.key, entry.tenant = principal.key, principal.tenant
        headers: list[Header] = [(b"x-request-id", entry.request_id.encode())]
        span = self._tracer.begin(scope) if self._tracer is not None else None
        entry.passed_on = span.asked if span is not None else _client_trace(scope)
        leash, observed = Leash(_body_late, _late), Observed()
        self._leashes.add(leash)
        try:
            with leash:
                exchange, whole = await self._complete(
                    scope, receive, send, Notes(entry, headers, principal, leash, observed, side)
                )
            await exchange.finish(whole)
        except Refusal as refusal:
            await _refused(send, refusal, entry, headers)
        except ClientGone:
            entry.status, entry.error = CLIENT_CLOSED, "the client left"
        except asyncio.CancelledError:
            entry.status, entry.error = 503, "serving stopped before the answer was whole"
            raise
        finally:
            self._leashes.discard(leash)
            entry.end()
            self._note(entry)
            self._observer.end(observed, entry)
            if entry.cache != HIT:  # which says nothing about the arm
                self._live.meter.observe(entry)
            self._access.settle(entry)
            if span is not None:
                span.end(entry)

    def _note(self, entry: Entry) -> None:
        """Log and count a request that is over, the client's own or one beside it."""
        self._log.add(entry)
        self._metrics.observe(entry)

    async def _complete(
        self, scope: Scope, receive: Receive, send: Send, notes: Notes
    ) -> tuple[Exchange, bytes | None]:
        entry, leash = notes.entry, notes.leash
        if self.admission.full:
            raise self.admission.refusal()
        entry.charge = self._access.admit(notes.principal)
        leash.begin(self._timeouts.body_s, _deadline_s(scope, self._timeouts.answer_s))
        body = await read_body(scope, receive, self._limits.max_body_bytes)
        entry.n_prompt_estimate = len(body) // BYTES_PER_TOKEN
        call = _checked(scope["path"], parse_object(body), self._limits)
        entry.stream = call.stream
        entry.model = call.asked[:200]
        entry.user = call.user
        self._access.accept(notes.principal, call, entry, self._live.side.table)
        notes.headers.extend(self._access.limit_headers(notes.principal))
        leash.watch(scope, receive)
        began = await self._enter(scope, entry)
        try:
            return await self._answer(scope, call, send, notes)
        finally:
            self.admission.leave(time.perf_counter() - began)

    async def _enter(self, scope: Scope, entry: Entry) -> float:
        """Take a place at the engine, or wait for one; gives when that was."""
        low = header(scope, PRIORITY_HEADER) == b"low"
        if not self.admission.enter(low):
            entry.known = entry.model in self._live.side.table.names
            await self.admission.wait(low)
        entry.place()
        return time.perf_counter()

    async def _answer(
        self, scope: Scope, call: Call, send: Send, notes: Notes
    ) -> tuple[Exchange, bytes | None]:
        """Choose who answers, and have it asked."""
        entry, headers = notes.entry, notes.headers
        side = notes.side or self._live.side
        table = side.table
        headers.append(table.version_header)
        entry.route_version = table.version
        choice = table.choose(call.asked, Asker(_session(scope), call.user, entry.tenant))
        entry.known, entry.propensity = True, choice.propensity
        shadowed = choice.shadow is not None and self.router.shadows.due(choice.shadow, call)
        observed = self._observer.begin(notes.observed, scope, call, (choice, entry, shadowed))
        headers.extend(observed.headers)
        over = asyncio.Event() if shadowed and observed.hit is None else None
        own = len(headers)
        trip = Trip(scope["path"], call, side, table, choice, entry, headers, own, send, over, observed.taps)
        try:
            if observed.hit is not None:
                exchange = trip.exchange(choice.target, choice.arm)
                return exchange, await exchange.replay(observed.hit)
            return await self.router.answer(trip)
        finally:
            if over is not None:
                over.set()


async def _refused(send: Send, refusal: Refusal, entry: Entry, headers: list[Header]) -> None:
    """Tell the client; in the middle of a stream by an event, if it still reads."""
    if not entry.begun:
        entry.status, entry.error = refusal.status, refusal.logged
        await respond(send, refusal.status, [JSON_TYPE, *headers, *refusal.headers()], refusal.body())
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(break_off(send, refusal, entry, last=True), LAST_WORD_S)


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
    return (
        _short_text(given) if given and len(given) <= MAX_REQUEST_ID else None
    ) or f"{random.getrandbits(128):032x}"


def _checked(path: str, body: dict[str, Any], limits: Limits) -> Call:
    if path == EMBEDDINGS:
        return check_embeddings(body, limits)
    return check(body, path.endswith("/chat/completions"), limits)


def _deadline_s(scope: Scope, longest_s: float) -> float:
    """How long this answer may take: the client's header, at most the profile's."""
    given = header(scope, DEADLINE_HEADER)
    if given is None:
        return longest_s
    try:
        wanted = float(given)
    except ValueError:
        wanted = 0.0
    if not wanted > 0:
        name = DEADLINE_HEADER.decode()
        raise Refusal(
            400, f"{name}: is {given.decode('latin-1')[:40]!r}; give seconds", name, "invalid_header"
        )
    return min(wanted, longest_s)


def _client_trace(scope: Scope) -> Callable[[], dict[str, str]] | None:
    """Gives the headers by which the engine's own trace becomes part of the client's."""
    parent = _short_text(header(scope, b"traceparent"))
    if parent is None:
        return None
    state = _short_text(header(scope, b"tracestate"))
    found = {"traceparent": parent} if state is None else {"traceparent": parent, "tracestate": state}
    return lambda: found


def _short_text(value: bytes | None) -> str | None:
    """A header's value that may be handed on or kept; None for what is long or not plain."""
    if value and len(value) <= MAX_HANDED_ON and value.isascii() and (text := value.decode()).isprintable():
        return text
    return None


def _late(seconds: float) -> Refusal:
    return Refusal(504, f"no whole answer within {seconds:g} s", code="deadline_exceeded")


def _body_late() -> Refusal:
    return Refusal(408, "the request's body did not come in time; send it at once", code="request_timeout")
