"""How many questions are under way at once: a fixed number, or as many as the endpoint is the faster for.

By Little's law the number under way is throughput times latency. While throughput grows with it, latency holds; where
throughput stays, only latency grows, so that is where growing ends. The number doubles from FIRST until a doubling
brings less than GAIN, then steps back; from then on one step up is tried now and then. An endpoint that says it has too
much to do (429, 503) or lets a question time out halves the number, and after that it grows by single steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

FIRST = 8
MOST = 256
"""The cap of `auto`."""
GAIN = 1.1
KEPT_GAIN = 1.02  # of a single step up
STEADY_WINDOWS = 8
"""Windows between two tries of a step up."""

Phase = Literal["fixed", "doubling", "steady", "trying"]


class Climb:
    """The number itself: told what a window of answers brought, it says how many may be under way next."""

    def __init__(self, fixed: int | None = None) -> None:
        """Begin with `fixed`, which then stays, or with FIRST."""
        self.limit = fixed or FIRST
        self._phase: Phase = "fixed" if fixed else "doubling"
        self._before: tuple[int, float] | None = None
        self._n_steady = 0

    def window(self, rate: float, overloaded: bool, slow: bool) -> None:
        """Learn from one window.

        Args:
            rate: work done a second at the present limit.
            overloaded: the endpoint refused a question or let one time out.
            slow: an answer took so long that more load might make it time out.
        """
        if self._phase == "fixed":
            return
        if overloaded:
            self.limit = max(1, self.limit // 2)
            self._settle()
        elif self._before is not None:
            self._judge(rate, slow)
        elif self._phase == "doubling" and not slow:
            self._grow("doubling", 2 * self.limit, rate)
        else:
            self._n_steady += 1
            if self._n_steady >= STEADY_WINDOWS and not slow:
                self._grow("trying", self.limit + max(1, self.limit // 4), rate)

    def _grow(self, phase: Phase, limit: int, rate: float) -> None:
        if self.limit == MOST:
            self._settle()
            return
        self._before = (self.limit, rate)
        self._phase, self.limit = phase, min(limit, MOST)

    def _judge(self, rate: float, slow: bool) -> None:
        """Whether the last growth was worth it."""
        assert self._before is not None
        limit, before = self._before
        if slow or rate < before * (GAIN if self._phase == "doubling" else KEPT_GAIN):
            self.limit = limit
            self._settle()
        elif self._phase == "doubling":
            self._grow("doubling", 2 * self.limit, rate)
        else:
            self._settle()

    def _settle(self) -> None:
        self._phase, self._before, self._n_steady = "steady", None, 0


class Pace:
    """A gate that questions pass; what comes back through it is what a `Climb` learns from.

    A window is as many answers as may be under way. After a change of the limit the answers to what was asked before
    it are let pass unmeasured.
    """

    def __init__(self, climb: Climb, slow_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Let through as many as `climb` says; an answer after `slow_s` counts as slow."""
        self.climb = climb
        self.n_running = 0
        self._slow_s = slow_s
        self._clock = clock
        self._room = asyncio.Event()
        self._n_overloaded = 0
        self._unmeasured = 0
        self._fell = False
        self._begin()

    async def enter(self) -> None:
        """Wait until one more question may be asked. There is one caller."""
        while self.n_running >= self.climb.limit:
            self._room.clear()
            await self._room.wait()
        self.n_running += 1

    def leave(self, work: float, latency_s: float, n_overloaded: int) -> None:
        """A question came back: its work, how long it took, and how often the endpoint was overloaded so far."""
        self.n_running -= 1
        self._room.set()
        if self._unmeasured:
            self._unmeasured -= 1
            if self._fell:  # what was asked before may still be refused
                self._n_overloaded = n_overloaded
            if n_overloaded == self._n_overloaded:
                self._begin()
                return
        self._n += 1
        self._work += work
        self._slow |= latency_s > self._slow_s
        overloaded = n_overloaded > self._n_overloaded
        if self._n < max(self.climb.limit, FIRST) and not overloaded:
            return
        self._n_overloaded = n_overloaded
        before = self.climb.limit
        self.climb.window(self._work / max(self._clock() - self._started, 1e-9), overloaded, self._slow)
        self._unmeasured = before if self.climb.limit != before else 0
        self._fell = self.climb.limit < before
        self._begin()

    def _begin(self) -> None:
        self._started, self._n, self._work, self._slow = self._clock(), 0, 0.0, False
