"""Who may go to the engine now, who waits for a place, and who is told to come back.

Places are the requests under way in the engine. When all are taken, requests wait in order of arrival, at most
`max_waiting` of them, each for at most `queue_s`. Low priority (batches) begins only while fewer than
`max_low_priority` requests of any kind are under way, so it gives way to all others.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from llmops.serving.http import Refusal
from llmops.serving.profile import Limits

SMOOTHING = 0.05
LONGEST_RETRY_AFTER_S = 60


class Admission:
    """The places of one gateway. All calls come from the event loop."""

    def __init__(self, limits: Limits, queue_s: float) -> None:
        """Begin with every place free; `queue_s` is the longest wait for one."""
        self.n_running = 0
        self._limits = limits
        self._queue_s = queue_s
        self._waiting: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())
        self._typical_s = 1.0

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a place, of both priorities."""
        return len(self._waiting[0]) + len(self._waiting[1])

    @property
    def full(self) -> bool:
        """Whether one more request would not even be allowed to wait."""
        return self.n_waiting >= self._limits.max_waiting and self.n_running >= self._limits.max_requests

    def enter(self, low: bool) -> bool:
        """Take a place if there is one for a request that has just come; False: it must wait."""
        if self._waiting[0] or self.n_running >= self._places(low) or (low and self._waiting[1]):
            return False
        self.n_running += 1
        return True

    async def wait(self, low: bool) -> None:
        """Wait for a place and take it.

        Raises:
            Refusal: 429 when too many wait already, 503 when none came free within `queue_s`; both with Retry-After.
        """
        if self.n_waiting >= self._limits.max_waiting:
            raise self.refusal()
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(self._queue_s, self._expire, turn)
        queue = self._waiting[low]
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was given in the same step of the loop
                self._free()
            raise
        finally:
            timer.cancel()
            if turn in queue:
                queue.remove(turn)

    def leave(self, took_s: float) -> None:
        """Give a place back after `took_s` seconds in it; the next in line takes it."""
        self._typical_s += SMOOTHING * (took_s - self._typical_s)
        self._free()

    def refusal(self) -> Refusal:
        """What a request is told that may not even wait."""
        return Refusal(
            429, f"{self.n_running} requests are under way and {self.n_waiting} wait; try again later", None,
            "queue_full", self._retry_after_s(),
        )  # fmt: skip

    def _expire(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            why = f"no place came free within {self._queue_s:g} s; try again later"
            turn.set_exception(Refusal(503, why, None, "queue_timeout", self._retry_after_s()))

    def _free(self) -> None:
        self.n_running -= 1
        for low in (False, True):
            queue = self._waiting[low]
            while queue and self.n_running < self._places(low):
                turn = queue.popleft()
                if not turn.done():
                    self.n_running += 1
                    turn.set_result(None)
            if queue:
                return

    def _places(self, low: bool) -> int:
        limits = self._limits
        return min(limits.max_low_priority, limits.max_requests) if low else limits.max_requests

    def _retry_after_s(self) -> int:
        """When a place is likely: those ahead, at the pace of late."""
        rounds = (self.n_waiting + 1) / self._limits.max_requests
        return max(1, min(LONGEST_RETRY_AFTER_S, math.ceil(rounds * self._typical_s)))
