"""One request's way to the engine and its answer's way back, as bytes.

Streams pass on as they come, cut at the ends of events only, so that a lost engine never leaves half an
event. The one change in an answer is its `model` field, which shows the name that was asked for: a
substitution on the bytes, because parsing every chunk would cost more than all the rest.
"""

from __future__ import annotations

from typing import Any

import orjson

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


class Exchange:
    """One request and what was sent of its answer."""

    def __init__(self, call: Call, target: Target, entry: Entry, headers: list[Header], send: Send) -> None:
        """Prepare the engine's request; `headers` say who answers."""
        self.call = call
        self.data = for_engine(call, target)
        self.started = False
        self._entry = entry
        self._headers = headers
        self._send = send
        self._held = b""
        self._pattern = target.model_field if call.asked != target.engine_name else None
        self._shown = b'"model":' + orjson.dumps(call.asked)

    def whole(self, body: bytes) -> bytes:
        """The engine's whole answer as the client sees it.

        Raises:
            Refusal: 502 when it is not JSON.
        """
        try:
            usage = orjson.loads(body).get("usage")
        except (orjson.JSONDecodeError, AttributeError):
            raise Refusal(502, "the engine's answer is not a JSON object", code="engine_broke") from None
        self._entry.usage(usage or {})
        return self._renamed(body)

    async def begin(self) -> None:
        """Send the headers of a stream."""
        self.started = True
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
        self._entry.first_token()
        self._entry.n_pieces += events.count(b"\n\n")
        if b'"usage"' in events or b'"error"' in events:
            events = self._inspected(events)
        if events:
            await self._send({"type": "http.response.body", "body": self._renamed(events), "more_body": True})

    async def break_off(self, failure: Refusal) -> None:
        """Tell the client of a running stream that no more comes; there is no [DONE] after it."""
        self._entry.error = failure.logged
        event = b"data: " + failure.body() + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def finish(self, whole: bytes | None) -> None:
        """Send the end of a stream (None), or a whole answer."""
        if whole is None:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        self._entry.status = 200
        await respond(self._send, 200, [JSON_TYPE, *self._headers], whole)

    def _renamed(self, data: bytes) -> bytes:
        return self._pattern.sub(self._shown, data) if self._pattern else data

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


def _event_data(event: bytes) -> dict[str, Any]:
    if not event.startswith(b"data: {"):
        return {}
    try:
        data: dict[str, Any] = orjson.loads(event[6:])
    except orjson.JSONDecodeError:
        return {}
    return data
