"""What each arm of a watched name did of late: failures, and how long clients waited for the first token.

Counted are whole answers (status 200) and failures that are the arm's or the engine's (5xx, or an error in the middle
of a stream). Requests that a client broke off, got wrong or was refused for load say nothing about an arm. Failures and
waits have windows of their own: each ends when both the canary and the champion have had enough of its kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llmops.records import CHAMPION, ArmFigures
from llmops.serving.request_log import Entry

MAX_WAITS = 10_000
"""Most waits that are kept of one window and arm; the other arm may take long to have its own."""


@dataclass
class ArmCount:
    """What one arm did in the running windows."""

    n_requests: int = 0
    n_errors: int = 0
    waits_ms: list[float] = field(default_factory=list)

    def figures(self, arm: str, slow_ms: float | None) -> ArmFigures:
        """The counts; streams that took longer than `slow_ms` to begin count as slow."""
        n_slow = 0 if slow_ms is None else sum(wait > slow_ms for wait in self.waits_ms)
        return ArmFigures(arm, self.n_requests, self.n_errors, len(self.waits_ms), n_slow, p95(self.waits_ms))


class Meter:
    """Counts by public name and arm, for names that are watched."""

    def __init__(self) -> None:
        """Watch nothing."""
        self._counts: dict[str, dict[str, ArmCount]] = {}

    def watch(self, name: str, arms: tuple[str, ...]) -> None:
        """Begin windows for these arms of a name and its champion; what was counted before is forgotten."""
        self._counts[name] = {arm: ArmCount() for arm in (*arms, CHAMPION)}

    def forget(self, name: str) -> None:
        """Watch a name no longer."""
        self._counts.pop(name, None)

    def counts(self, name: str) -> dict[str, ArmCount]:
        """What was counted in a name's running windows, by arm."""
        return self._counts.get(name, {})

    def end_errors(self, name: str) -> None:
        """Begin the next window of failures."""
        for count in self.counts(name).values():
            count.n_requests = count.n_errors = 0

    def end_waits(self, name: str) -> None:
        """Begin the next window of waits."""
        for count in self.counts(name).values():
            count.waits_ms = []

    def take(self, name: str) -> dict[str, ArmCount]:
        """What was counted in a name's running windows, by arm, which are empty then: for another gateway to add."""
        taken = self.counts(name)
        if taken:
            self._counts[name] = {arm: ArmCount() for arm in taken}
        return taken

    def add(self, name: str, arm: str, counted: ArmCount) -> None:
        """Add what was counted elsewhere to the running windows; nothing for what is not watched."""
        count = self._counts.get(name, {}).get(arm)
        if count is not None:
            count.n_requests += counted.n_requests
            count.n_errors += counted.n_errors
            count.waits_ms += counted.waits_ms[: max(0, MAX_WAITS - len(count.waits_ms))]

    def failed(self, name: str, arm: str) -> None:
        """Count a failure that another target made good."""
        count = self._counts.get(name, {}).get(arm)
        if count is not None:
            count.n_requests += 1
            count.n_errors += 1

    def observe(self, entry: Entry) -> None:
        """Count a request that is over."""
        count = self._counts.get(entry.model or "", {}).get(entry.arm or "")
        if count is None or not (entry.status == 200 or entry.status >= 500):
            return
        count.n_requests += 1
        count.n_errors += entry.status != 200 or entry.error is not None
        if entry.ttft_ms is not None and len(count.waits_ms) < MAX_WAITS:
            count.waits_ms.append(entry.ttft_ms)


def p95(values: list[float]) -> float | None:
    """The 95th percentile by nearest rank; None without values.

    >>> p95([float(i) for i in range(1, 101)]), p95([])
    (95.0, None)
    """
    if not values:
        return None
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
