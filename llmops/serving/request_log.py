"""The request log: one JSON line for every completion asked for, also when it failed or its client left.

The hot path only appends to a list; a task writes what has gathered ten times a second and at the end, in a
thread. The file is opened for each write, so it may be rotated by renaming it. Prompts and answers are never
written here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from llmops.serving.limits import Charge

FLUSH_INTERVAL_S = 0.1
MAX_WAITING = 50_000
GAP_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
"""Bounds of the histogram of times between two pieces of a stream."""
UNLOGGED = (
    "started", "known", "begun", "passed_on", "gaps", "gaps_s", "last_piece", "charge", "n_prompt_estimate", "n_pieces",
)  # fmt: skip

log = logging.getLogger("llmops.serving")


@dataclass
class Entry:
    """One request, filled in while it runs; field names are those of the log's lines."""

    request_id: str
    path: str
    started: float  # time.perf_counter()
    known: bool = False  # the model that was asked for exists
    begun: bool = False  # a stream's headers went to the client
    passed_on: Callable[[], dict[str, str]] | None = None  # gives headers that the engine gets, too
    model: str | None = None
    answered_by: str | None = None
    route_version: int | None = None
    key: str | None = None  # id of the key that asked
    tenant: str | None = None
    user: str | None = None  # the request's `user` field
    arm: str | None = None  # champion, canary, shadow ...
    lineage: str | None = None
    propensity: float | None = None  # how likely the arm was that was chosen
    fell_from: str | None = None  # the arm that was chosen and failed, and why; another answered
    response_id: str | None = None  # the answer's `id`, which feedback names
    captured: bool = False  # its texts are in the sample
    status: int = 500
    stream: bool = False
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    n_cached_tokens: int | None = None  # prompt tokens that the engine had in its prefix cache
    cache: str | None = None  # hit or miss, where the response cache was asked
    queue_ms: float | None = None  # wait for a place at the engine; None: it never got one
    ttft_ms: float | None = None
    duration_ms: float | None = None
    error: str | None = None
    charge: Charge | None = None  # what was set aside of its key's limits
    n_prompt_estimate: int = 0  # tokens, by the body's size
    n_pieces: int = 0  # events of a stream that were sent
    gaps: list[int] | None = None  # pieces of the stream by the time since the one before: GAP_BOUNDS_S
    gaps_s: float = 0.0
    last_piece: float = 0.0

    def piece(self) -> None:
        """Note that a piece of a stream has come from the engine."""
        at = time.perf_counter()
        if self.gaps is None:
            self.ttft_ms = round((at - self.started) * 1000, 2)
            self.gaps = [0] * (len(GAP_BOUNDS_S) + 1)
        else:
            gap = at - self.last_piece
            self.gaps[bisect_left(GAP_BOUNDS_S, gap)] += 1
            self.gaps_s += gap
        self.last_piece = at

    def place(self) -> None:
        """Note that the request goes to the engine now."""
        self.queue_ms = self.elapsed_ms()

    def phase(self) -> str:
        """How far the request is: queue, first_token or stream (of streams), whole (an answer in one piece)."""
        if self.queue_ms is None:
            return "queue"
        if not self.stream:
            return "whole"
        return "first_token" if self.ttft_ms is None else "stream"

    def usage(self, usage: dict[str, Any]) -> None:
        """Take the token counts of an OpenAI usage object."""
        self.n_prompt_tokens = usage.get("prompt_tokens")
        self.n_completion_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.n_cached_tokens = details.get("cached_tokens")

    def end(self) -> None:
        """Note that the request is over."""
        self.duration_ms = self.elapsed_ms()

    def line(self) -> dict[str, Any]:
        """The log's line."""
        line = {"at": _stamp(time.time()), **self.__dict__}
        for name in UNLOGGED:
            del line[name]
        return line

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came."""
        return round((time.perf_counter() - self.started) * 1000, 2)


def _stamp(at_s: float) -> str:
    """A moment as `settings.now` writes it, at a fifth of the cost: one a request."""
    second, ms = divmod(int(at_s * 1000), 1000)
    return f"{_second(second)}.{ms:03}Z"


@lru_cache(4)
def _second(at_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))


class RequestLog:
    """Writer of one log file. What cannot be written (a full disk) is kept up to a bound, then counted as lost."""

    def __init__(self, path: Path) -> None:
        """Write to `path`, whose folder is made."""
        self.path = path
        self.n_lost = 0
        self._waiting: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin to write what comes in."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._task = asyncio.create_task(self._run())

    def add(self, entry: Entry) -> None:
        """Queue one request's line; never waits."""
        if len(self._waiting) >= MAX_WAITING:
            self.n_lost += 1
            return
        self._waiting.append(entry.line())

    async def stop(self) -> None:
        """Write all that waits and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            if self._waiting:
                await asyncio.shield(self._flush())

    async def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            await asyncio.to_thread(self._write, lines)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("request log %s: cannot be written (%s); free space", self.path, error.strerror)
            self._failing = True
            keep = MAX_WAITING - len(self._waiting)
            self.n_lost += max(0, len(lines) - keep)
            self._waiting = lines[-keep:] + self._waiting if keep > 0 else self._waiting

    def _write(self, lines: list[dict[str, Any]]) -> None:
        data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(data)
