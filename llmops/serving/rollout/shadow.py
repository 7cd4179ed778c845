"""Shadows: requests that are also asked of a model whose answers no client sees.

Sampled, started only while the engine has little to do, few at a time, never waited for, and never counted as anybody's
use. A pair of answers to the same prompt comes out of each, for whoever wants to have them rated.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmops.serving.exchange import Exchange
from llmops.serving.http import AsgiMessage, Refusal
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call
from llmops.serving.rollout.cascade import Ask
from llmops.serving.rollout.plan import Shadow
from llmops.serving.rollout.trip import Trip
from llmops.serving.routes import Live

ARM = "shadow"

LONGEST_S = 600.0

log = logging.getLogger("llmops.serving")


@dataclass(frozen=True)
class ShadowAnswer:
    """What a shadow answered, once the client has its own answer too.

    `shown` is the log entry of the answer that the client saw, `entry` that of the shadow; both have the same request
    id. `body` is the engine's whole JSON answer to `call`, with one choice.
    """

    shown: Entry
    entry: Entry
    call: Call
    body: bytes


class Shadows:
    """The shadows that run. Set `on_answer` to receive what they say."""

    def __init__(self, live: Live, ask: Ask, note: Callable[[Entry], None]) -> None:
        """Ask through `ask`, and write each entry with `note`."""
        self.on_answer: Callable[[ShadowAnswer], None] = lambda _answer: None
        self._live = live
        self._ask = ask
        self._note = note
        self._running: set[asyncio.Task[None]] = set()

    def due(self, shadow: Shadow, call: Call) -> bool:
        """Whether a request is to be asked of the shadow as well: it is answered in words, it is its turn, and there is
        room.
        """
        if not call.chat and "prompt" not in call.body:
            return False
        rule = shadow.rule
        if random.random() >= rule.sample or len(self._running) >= rule.max_running:
            return False
        return self._live.in_flight.total() <= rule.max_busy

    def start(self, trip: Trip, shadow: Shadow) -> None:
        """Ask the shadow as well."""
        task = asyncio.create_task(self._run(trip, shadow))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what still runs."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, trip: Trip, shadow: Shadow) -> None:
        entry = trip.aside(shadow.target, ARM)
        call = _alone(trip.call)
        exchange = Exchange(call, shadow.target, entry, [], _nowhere)
        try:
            with trip.side.using(shadow.target):
                whole = await asyncio.wait_for(self._ask(trip.side, trip.path, exchange), LONGEST_S)
            entry.status = 200
            entry.end()
            if whole is not None and trip.over is not None:
                await trip.over.wait()
                self.on_answer(ShadowAnswer(trip.entry, entry, call, whole))
        except Refusal as refusal:
            entry.status, entry.error = refusal.status, refusal.logged
        except TimeoutError:
            entry.status, entry.error = 504, f"no whole answer within {LONGEST_S:g} s"
        except asyncio.CancelledError:
            entry.status, entry.error = 503, "serving stopped before the shadow's answer was whole"
            raise
        except Exception:
            log.exception("a shadow's answer was lost")  # the client's own answer must not notice
            entry.error = "a fault of the gateway; its log says more"
        finally:
            if entry.duration_ms is None:
                entry.end()
            self._note(entry)


def _alone(call: Call) -> Call:
    """The request for one whole answer."""
    body = {name: value for name, value in call.body.items() if name not in ("stream", "stream_options", "n")}
    return replace(call, body=body, stream=False, wants_usage=False)


async def _nowhere(_message: AsgiMessage) -> None:
    """Where a shadow's answer is sent."""
