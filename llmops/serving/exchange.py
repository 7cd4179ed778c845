"""One request's way to the engine and its answer's way back, as bytes.

Streams pass on as they come, cut at the ends of events only, so that a lost engine never leaves half an
event. The one change in an answer is its `model` field, which shows the name that was asked for: a
substitution on the bytes, because parsing every chunk would cost more than all the rest.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import orjson

from llmops.capture.answers import response_id_of
from llmops.serving.http import JSON_TYPE, Header, Refusal, Send, respond
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call, for_engine
from llmops.serving.target import Target

STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the stream
)
PASSED_ON = (400, 413, 422, 429, 503)
"""Statuses of the engine that are the client's business; others are faults of the engine."""


class Tap(Protocol):
    """Something that gathers an answer as it is sent."""

    def add(self, data: bytes) -> None:
        """Take a piece: whole events of a stream, or the whole answer."""


class Exchange:
    """One request and what was sent of its answer."""

    def __init__(self, call: Call, target: Target, entry: Entry, headers: list[Header], send: Send) -> None:
        """Prepare the engine's request; `headers` say who answers."""
        self.call = call
        self.data = for_engine(call, target)
        self.started = False
        self.taps: tuple[Tap, ...] = ()
        self._entry = entry
        self._headers = headers
        self._send = send
        self._held = b""
        self._fields = _model_fields(target.engine_name) if call.asked != target.engine_name else None
        self._shown = b'"model":' + orjson.dumps(call.asked)

    def whole(self, body: bytes) -> bytes:
        """The engine's whole answer as the client sees it.

        Raises:
            Refusal: 502 when it is not JSON.
        """
        try:
            answer = orjson.loads(body)
            usage, answer_id = answer.get("usage"), answer.get("id")
        except (orjson.JSONDecodeError, AttributeError):
            raise Refusal(502, "the engine's answer is not a JSON object", code="engine_broke") from None
        self._entry.usage(usage or {})
        self._entry.response_id = answer_id if isinstance(answer_id, str) else None
        shown = self._renamed(body)
        for tap in self.taps:
            tap.add(shown)
        return shown

    async def begin(self) -> None:
        """Send the headers of a stream."""
        self.started = self._entry.begun = True
        self._entry.status = 200
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *self._headers]}
        )

    async def relay(self, data: bytes) -> None:
        """Pass on all events that are whole by now."""
        data = self._held + data if self._held else data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            self._held = data
            return
        events, self._held = data[:end], data[end:]
        self._entry.piece()
        self._entry.n_pieces += events.count(b"\n\n")
        if self._entry.response_id is None:
            self._entry.response_id = response_id_of(events)
        if b'"usage"' in events or b'"error"' in events:
            events = self._inspected(events)
        if events:
            shown = self._renamed(events)
            for tap in self.taps:
                tap.add(shown)
            await self._send({"type": "http.response.body", "body": shown, "more_body": True})

    async def replay(self, data: bytes) -> bytes | None:
        """An answer that was given before: sent now if it is a stream, else the whole body to send."""
        for tap in self.taps:
            tap.add(data)
        if not self.call.stream:
            return data
        self._entry.piece()
        await self.begin()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        return None

    def passed_on(self) -> dict[str, str] | None:
        """Headers of the request that the engine gets, too; the engine is asked now."""
        give = self._entry.passed_on
        return give() if give is not None else None

    async def break_off(self, failure: Refusal) -> None:
        """Tell the client of a running stream that no more comes; there is no [DONE] after it."""
        await break_off(self._send, failure, self._entry)

    async def finish(self, whole: bytes | None) -> None:
        """Send the end of a stream (None), or a whole answer."""
        if whole is None:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        self._entry.status = 200
        await respond(self._send, 200, [JSON_TYPE, *self._headers], whole)

    def _renamed(self, data: bytes) -> bytes:
        if self._fields is None:
            return data
        compact, spaced = self._fields
        return data.replace(compact, self._shown).replace(spaced, self._shown)

    def _inspected(self, events: bytes) -> bytes:
        """Take note of usage and errors; the usage event goes on only to clients that asked for it."""
        kept = []
        for event in events[:-2].split(b"\n\n"):
            data = _event_data(event)
            if isinstance(data.get("error"), dict):
                self._entry.error = str(data["error"].get("message"))
            if isinstance(data.get("usage"), dict):
                self._entry.usage(data["usage"])
                if not data.get("choices") and not self.call.wants_usage:
                    continue
            kept.append(event + b"\n\n")
        return b"".join(kept)


async def break_off(send: Send, failure: Refusal, entry: Entry, last: bool = False) -> None:
    """Put an error into a running stream; `last` ends the response with it."""
    entry.error = failure.logged
    event = b"data: " + failure.body() + b"\n\n"
    await send({"type": "http.response.body", "body": event, "more_body": not last})


def engine_refusal(status: int, body: bytes) -> Refusal:
    """The engine's refusal in OpenAI's shape; a fault of its own becomes 502."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = {}
    error = data.get("error", data) if isinstance(data, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    message = str(error.get("message") or f"the engine answered {status}")
    if status not in PASSED_ON:
        return Refusal(502, f"the engine failed ({status}): {message}", code="engine_error")
    code = "context_length_exceeded" if "maximum context length" in message else None
    refusal = Refusal(status, message, error.get("param"), code, 1 if status in (429, 503) else None)
    # The engine's words may quote the prompt, which has no place in the log.
    refusal.logged = f"the engine refused it ({status}, {code or error.get('param') or error.get('type')})"
    return refusal


@lru_cache(1024)
def _model_fields(name: str) -> tuple[bytes, bytes]:
    """The `model` field of the engine's JSON in both spellings; never text, whose quotes are escaped."""
    return f'"model":"{name}"'.encode(), f'"model": "{name}"'.encode()


def _event_data(event: bytes) -> dict[str, Any]:
    if not event.startswith(b"data: {"):
        return {}
    try:
        data: dict[str, Any] = orjson.loads(event[6:])
    except orjson.JSONDecodeError:
        return {}
    return data
