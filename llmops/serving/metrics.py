"""What the gateway counts, for Prometheus. vLLM's own metrics carry no adapter label, so these are taken here.

`model` is the name that was asked for and exists (else `unknown`), `adapter` the first digits of the digest
that answered, `arm` the part it plays in the name's rollout (`none` outside one). Requests add to plain lists;
the exposition is built when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as PlainCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmops.schema import short
from llmops.serving.request_log import GAP_BOUNDS_S, Entry

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LABELS = ("model", "adapter", "arm")
CLIENT_CLOSED = 499


class _Histogram:
    """Counts by bucket, and the sum, of one label set."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def add(self, counts: list[int], total: float) -> None:
        """Take over what one request counted by itself."""
        for i, n in enumerate(counts):
            self.counts[i] += n
        self.sum += total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts by upper bound, as Prometheus shows them."""
        n, found = 0, []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            n += count
            found.append((bound, float(n)))
        return found


@dataclass
class _Series:
    """All that is counted of one model name on one adapter in one arm."""

    statuses: Counter[int] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    n_errors: int = 0
    ttft: _Histogram = field(default_factory=lambda: _Histogram(SECONDS))
    duration: _Histogram = field(default_factory=lambda: _Histogram(SECONDS))
    queue: _Histogram = field(default_factory=lambda: _Histogram(SECONDS))
    gaps: _Histogram = field(default_factory=lambda: _Histogram(GAP_BOUNDS_S))


class Metrics(Collector):
    """Counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.refused = PlainCounter(
            "llmops_refused",
            "Requests refused before a model was looked for: no key, a wrong role, a foreign host ...",
            ("code",),
            registry=self.registry,
        )
        self._all: dict[tuple[str, str, str], _Series] = {}
        self._series = cache(self._make_series)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._totals: dict[str, tuple[str, Callable[[], float]]] = {}

    def gauge(self, name: str, says: str, read: Callable[[], float]) -> None:
        """Show a number that is read when the exposition is asked for."""
        self._gauges[name] = (says, read)

    def total(self, name: str, says: str, read: Callable[[], float]) -> None:
        """As `gauge`, of a count that only grows; shown as `NAME_total`."""
        self._totals[name] = (says, read)

    def observe(self, entry: Entry) -> None:
        """Count a request that is over."""
        series = self._series(
            entry.model if entry.known and entry.model else "unknown", entry.answered_by, entry.arm
        )
        series.statuses[entry.status] += 1
        if entry.status == CLIENT_CLOSED:
            series.cancelled[entry.phase()] += 1
        elif entry.error is not None:
            series.n_errors += 1
        if entry.cache is not None:
            series.cache[entry.cache] += 1
        series.queue.observe((entry.queue_ms or 0.0) / 1000)
        if entry.duration_ms is not None:
            series.duration.observe(entry.duration_ms / 1000)
        if entry.ttft_ms is not None:
            series.ttft.observe(entry.ttft_ms / 1000)
            if entry.gaps is not None:
                series.gaps.add(entry.gaps, entry.gaps_s)
        tokens = series.tokens
        tokens["prompt"] += entry.n_prompt_tokens or 0
        tokens["completion"] += entry.n_completion_tokens or 0
        tokens["cached_prompt"] += entry.n_cached_tokens or 0

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Every family, as prometheus-client asks for it."""
        yield from self._counters()
        yield self._histogram("llmops_ttft_seconds", "Time to the first token of streams.", lambda s: s.ttft)
        yield self._histogram(
            "llmops_inter_token_seconds", "Time between two pieces of a stream.", lambda s: s.gaps
        )
        yield self._histogram(
            "llmops_duration_seconds", "Time to the end of the answer.", lambda s: s.duration
        )
        yield self._histogram("llmops_queue_seconds", "Wait for a place at the engine.", lambda s: s.queue)
        for name, (says, read) in self._gauges.items():
            yield GaugeMetricFamily(name, says, value=read())
        for name, (says, read) in self._totals.items():
            yield CounterMetricFamily(name, says, value=read())

    def _counters(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "llmops_requests", "Requests by HTTP status (499: the client left).", labels=(*LABELS, "status")
        )
        errors = CounterMetricFamily(
            "llmops_request_errors", "Requests that failed, also in the middle of a stream.", labels=LABELS
        )
        cancelled = CounterMetricFamily(
            "llmops_cancellations",
            "Requests whose client left, by how far they were.",
            labels=(*LABELS, "phase"),
        )
        tokens = CounterMetricFamily("llmops_tokens", "Tokens.", labels=(*LABELS, "kind"))
        cached = CounterMetricFamily(
            "llmops_cached_answers",
            "Requests that asked the response cache, by result.",
            labels=(*LABELS, "result"),
        )
        for labels, series in self._all.items():
            errors.add_metric(labels, series.n_errors)
            for family, counts in (
                (requests, series.statuses), (cancelled, series.cancelled), (tokens, series.tokens),
                (cached, series.cache),
            ):  # fmt: skip
                for key, n in counts.items():
                    family.add_metric((*labels, str(key)), n)
        yield from (requests, errors, cancelled, tokens, cached)

    def _histogram(self, name: str, says: str, of: Callable[[_Series], _Histogram]) -> Metric:
        family = HistogramMetricFamily(name, says, labels=LABELS)
        for labels, series in self._all.items():
            histogram = of(series)
            family.add_metric(labels, histogram.buckets(), histogram.sum)
        return family

    def _make_series(self, model: str, answered_by: str | None, arm: str | None) -> _Series:
        labels = (model, short(answered_by) if answered_by else "none", arm or "none")
        return self._all.setdefault(labels, _Series())
