"""A cascade's first answer: asked with log-probabilities, held back whole, and passed on only if it is sure enough.

Logs of probabilities that the client did not ask for are taken out again, so that it sees what it would have seen from
a model of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson

from llmops.serving.exchange import Exchange
from llmops.serving.http import AsgiMessage, Refusal
from llmops.serving.requests import Call
from llmops.serving.rollout.plan import Cascade
from llmops.serving.rollout.trip import Trip
from llmops.serving.routes import Side

ARM = "cascade"
DRAFT = "draft"
"""The arm under which a first answer that was not good enough stands in the log; no client saw it."""
Ask = Callable[[Side, str, Exchange], Awaitable[bytes | None]]
"""Asks the engine of a side; gives a whole answer's body, or None for a stream that went to the exchange."""


class Draft:
    """The first model's answer to a request, as long as nobody has seen it."""

    def __init__(self, trip: Trip, cascade: Cascade) -> None:
        """Prepare to ask the cascade's first model."""
        self._trip = trip
        self._cascade = cascade
        self._held: list[bytes] = []
        self.entry = trip.aside(cascade.first, DRAFT)
        self._exchange = Exchange(_with_logprobs(trip.call), cascade.first, self.entry, [], self._hold)

    async def ask(self, ask: Ask) -> bytes | None:
        """The answer as the client may see it (a stream's events, or a whole body); None when it is not good enough."""
        try:
            whole = await ask(self._trip.side, self._trip.path, self._exchange)
        except Refusal as refusal:
            self.entry.status, self.entry.error = refusal.status, refusal.logged
            return None
        self.entry.status = 200
        if self.entry.error is not None:
            return None
        parts = [whole] if whole is not None else b"".join(self._held)[:-2].split(b"\n\n")
        found = [_body_of(part) for part in parts]
        least = self._cascade.rule.min_mean_logprob
        if least is not None:
            sure = _mean_logprob([body for body in found if body is not None])
            if sure is None or sure < least:
                return None
        if _wants_logprobs(self._trip.call):
            return whole if whole is not None else b"".join(self._held)
        shown = [
            part if body is None else _stripped(part, body) for part, body in zip(parts, found, strict=True)
        ]
        return shown[0] if whole is not None else b"\n\n".join(shown) + b"\n\n"

    async def _hold(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.body":
            self._held.append(message["body"])


def goes_on_at_once(call: Call, cascade: Cascade) -> bool:
    """Whether the first model is not asked at all: the prompt is too long for it, or cannot be judged by its tokens."""
    if not call.chat and (call.body.get("echo") or "prompt" not in call.body):
        return True
    most = cascade.rule.max_characters
    return most is not None and n_characters(call) > most


def n_characters(call: Call) -> int:
    """The length of a request's prompt; token ids count as one character each."""
    if not call.chat:
        prompts = call.body["prompt"]
        return len(prompts) if isinstance(prompts, str) else sum(_length(prompt) for prompt in prompts)
    total = 0
    for message in call.body["messages"]:
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
        total += sum(len(text) for text in texts if isinstance(text, str))
    return total


def _length(prompt: object) -> int:
    return len(prompt) if isinstance(prompt, str | list) else 1


def _wants_logprobs(call: Call) -> bool:
    wanted = call.body.get("logprobs")
    return bool(wanted) if call.chat else wanted is not None


def _with_logprobs(call: Call) -> Call:
    if _wants_logprobs(call):
        return call
    return replace(call, body={**call.body, "logprobs": True if call.chat else 0})


def _body_of(part: bytes) -> dict[str, Any] | None:
    """The JSON object in a body or an event; None for what carries none ([DONE])."""
    try:
        data = orjson.loads(part.removeprefix(b"data: "))
    except orjson.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None


def _mean_logprob(bodies: list[dict[str, Any]]) -> float | None:
    """The mean natural log-probability of all answered tokens; None when the engine gave none."""
    values = [
        value
        for body in bodies
        for choice in body.get("choices") or ()
        for value in _logprobs(choice.get("logprobs") or {})
    ]
    return sum(values) / len(values) if values else None


def _logprobs(said: dict[str, Any]) -> list[float]:
    found = [token.get("logprob") for token in said.get("content") or ()] or said.get("token_logprobs") or ()
    return [float(value) for value in found if isinstance(value, int | float)]


def _stripped(part: bytes, body: dict[str, Any]) -> bytes:
    head = b"data: " if part.startswith(b"data: ") else b""
    for choice in body.get("choices") or ():
        if "logprobs" in choice:
            choice["logprobs"] = None
    return head + orjson.dumps(body)
