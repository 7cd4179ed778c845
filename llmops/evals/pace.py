"""How many questions are under way at once: a fixed number, or as many as the endpoint is the faster for.

By Little's law throughput is the number under way over the time each takes: an endpoint with room answers as fast with
more under way, one without takes as much longer. A rate is measured so, as the limit times work over time under way,
because answers of mixed lengths come in bursts and what came in a span of time says little. The number doubles from
FIRST until a doubling brings less than its share, then steps back; from then on a step down and a step up are tried in
turn, so that chance drives it neither way. An endpoint that says it has too much to do (429, 503) or lets a question
time out halves the number.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Literal

FIRST = 16
MOST = 256
"""The cap of `auto`."""
ELASTICITY = 0.1
"""A limit f times as high is worth it where it brings at least f ** ELASTICITY times the rate."""
UP, DOWN = 4, 5
"""A step up is a quarter of the limit, a step down a fifth: one takes the other back."""
STEADY_WINDOWS = 3
"""Windows between two tries of a step."""
DOUBLING_ANSWERS = 32
"""Answers that are enough for a window while the limit doubles."""

Phase = Literal["fixed", "doubling", "steady", "trying"]


class Climb:
    """The number itself: told what a window of answers brought, it says how many may be under way next."""

    def __init__(self, fixed: int | None = None) -> None:
        """Begin with `fixed`, which then stays, or with FIRST."""
        self.limit = fixed or FIRST
        self.phase: Phase = "fixed" if fixed else "doubling"
        self._before: tuple[int, float] | None = None
        self._n_steady = 0
        self._down = False

    def window(self, rate: float, overloaded: bool, slow: bool) -> None:
        """Learn from one window.

        Args:
            rate: work done a second at the present limit.
            overloaded: the endpoint refused a question or let one time out.
            slow: an answer took so long that more load might make it time out.
        """
        if self.phase == "fixed":
            return
        if overloaded:
            self.limit = max(1, self.limit // 2)
            self._settle()
        elif self._before is not None:
            self._judge(rate, slow)
        elif self.phase == "doubling" and not slow:
            self._move(2 * self.limit, rate)
        else:
            self._n_steady += 1
            if self._n_steady >= STEADY_WINDOWS:
                self._try(rate, slow)

    def _try(self, rate: float, slow: bool) -> None:
        self.phase, self._down = "trying", slow or not self._down
        step = -max(1, self.limit // DOWN) if self._down else max(1, self.limit // UP)
        self._move(self.limit + step, rate)

    def _move(self, limit: int, rate: float) -> None:
        limit = min(max(1, limit), MOST)
        if limit == self.limit:
            self._settle()
            return
        self._before = (self.limit, rate)
        self.limit = limit

    def _judge(self, rate: float, slow: bool) -> None:
        """Whether the last move was worth it."""
        assert self._before is not None
        limit, before = self._before
        grew = self.limit > limit
        if (slow and grew) or rate < before * (self.limit / limit) ** ELASTICITY:
            self.limit = limit
            self._settle()
        elif self.phase == "doubling":
            self._move(2 * self.limit, rate)
        else:
            self._settle()

    def _settle(self) -> None:
        self.phase, self._before, self._n_steady = "steady", None, 0


class Pace:
    """A gate that questions pass; what comes back through it is what a `Climb` learns from.

    A window is as many answers as may be under way. After a change of the limit, questions are let pass unmeasured for
    half of what an answer takes, until a queue that the change makes has formed.
    """

    def __init__(self, climb: Climb, slow_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Let through as many as `climb` says; an answer after `slow_s` counts as slow."""
        self.climb = climb
        self.n_running = 0
        self._slow_s = slow_s
        self._clock = clock
        self._room = asyncio.Event()
        self._n_overloaded = 0
        self._fell = False
        self._measured_from = -math.inf
        self._begin()

    async def enter(self) -> float:
        """Wait until one more question may be asked; returns the time for `leave`. There is one caller."""
        while self.n_running >= self.climb.limit:
            self._room.clear()
            await self._room.wait()
        self.n_running += 1
        return self._clock()

    def leave(self, work: float, entered: float, n_overloaded: int) -> None:
        """A question came back: its work, when it entered, and how often the endpoint was overloaded so far."""
        self.n_running -= 1
        self._room.set()
        if entered <= self._measured_from:
            if self._fell:  # what was asked before may still be refused
                self._n_overloaded = n_overloaded
            if n_overloaded == self._n_overloaded:
                return
        took_s = self._clock() - entered
        self._n += 1
        self._work += work
        self._under_way_s += took_s
        self._slow |= took_s > self._slow_s
        overloaded = n_overloaded > self._n_overloaded
        if self._n < self._n_wanted() and not overloaded:
            return
        self._n_overloaded = n_overloaded
        before = self.climb.limit
        self.climb.window(before * self._work / max(self._under_way_s, 1e-9), overloaded, self._slow)
        if self.climb.limit != before:
            self._measured_from = self._clock() + self._under_way_s / self._n / 2
            self._fell = self.climb.limit < before
        self._begin()

    def _n_wanted(self) -> int:
        """Answers of a window."""
        n_wanted = max(self.climb.limit, FIRST)
        return min(n_wanted, DOUBLING_ANSWERS) if self.climb.phase == "doubling" else n_wanted

    def _begin(self) -> None:
        self._n, self._work, self._under_way_s, self._slow = 0, 0.0, 0.0, False
