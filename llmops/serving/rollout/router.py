"""A routed request's way to an answer: the cascade's first model, the chosen arm, the fallback, the shadow beside them.

A client gets one of these answers and nothing of the others; its log entry says which.
"""

from __future__ import annotations

from collections.abc import Callable

from llmops.serving.exchange import Exchange
from llmops.serving.http import Refusal
from llmops.serving.request_log import Entry
from llmops.serving.rollout.cascade import ARM as CASCADE
from llmops.serving.rollout.cascade import Ask, Draft, goes_on_at_once
from llmops.serving.rollout.plan import Cascade
from llmops.serving.rollout.shadow import Shadows
from llmops.serving.rollout.trip import Trip
from llmops.serving.routes import Live

FALLBACK = "fallback"
FALLS_BACK = (500, 502, 503, 504)
"""Failures of a target, before a byte was sent, that another target may make good."""


class Router:
    """Answers requests by their choice."""

    def __init__(self, live: Live, ask: Ask, note: Callable[[Entry], None]) -> None:
        """Ask engines through `ask`; `note` logs what was asked beside the client's own answer."""
        self.shadows = Shadows(live, ask, note)
        self._live = live
        self._ask = ask
        self._note = note

    async def answer(self, trip: Trip) -> tuple[Exchange, bytes | None]:
        """The exchange that carries the client's answer, and its whole body; None when it was streamed.

        Raises:
            Refusal: nobody who may answer did, and nothing was sent.
        """
        choice = trip.choice
        if choice.shadow is not None and trip.over is not None:
            self.shadows.start(trip, choice.shadow)
        if choice.cascade is not None and not goes_on_at_once(trip.call, choice.cascade):
            first = await self._first(trip, choice.cascade)
            if first is not None:
                return first
        exchange = trip.exchange(choice.target, choice.arm)
        try:
            with trip.side.using(choice.target):
                return exchange, await self._ask(trip.side, trip.path, exchange)
        except Refusal as refusal:
            fallback = choice.fallback
            if (
                fallback is None
                or fallback.digest == choice.target.digest
                or refusal.status not in FALLS_BACK
            ):
                raise
            trip.entry.fell_from = f"{choice.arm}: {refusal.logged}"
            self._live.meter.failed(trip.call.asked, choice.arm)
        exchange = trip.exchange(fallback, FALLBACK)
        with trip.side.using(fallback):
            return exchange, await self._ask(trip.side, trip.path, exchange)

    async def _first(self, trip: Trip, cascade: Cascade) -> tuple[Exchange, bytes | None] | None:
        """The answer of the cascade's first model; None when it is not good enough."""
        trip.answered_by(cascade.first, CASCADE)
        draft = Draft(trip, cascade)
        with trip.side.using(cascade.first):
            answer = await draft.ask(self._ask)
        if answer is None:
            draft.entry.end()
            self._note(draft.entry)
            return None
        exchange = trip.exchange(cascade.first, CASCADE)
        trip.entry.n_prompt_tokens = draft.entry.n_prompt_tokens
        trip.entry.n_completion_tokens = draft.entry.n_completion_tokens
        trip.entry.response_id = draft.entry.response_id
        if not trip.call.stream:
            for tap in trip.taps:
                tap.add(answer)
            return exchange, answer
        await exchange.begin()
        await exchange.relay(answer)
        return exchange, None
