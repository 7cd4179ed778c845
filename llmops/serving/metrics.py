"""What the gateway counts, for Prometheus. vLLM's own metrics carry no adapter label, so these are taken here.

`model` is the name that was asked for and exists (else `unknown`), `adapter` the first digits of the digest
that answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmops.schema import short
from llmops.serving.request_log import Entry

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True)
class _Series:
    """The series of one model name on one adapter."""

    n_prompt: Counter
    n_completion: Counter
    ttft: Histogram
    duration: Histogram


class Metrics:
    """Counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()
        labels = ("model", "adapter")
        self._requests = Counter(
            "llmops_requests",
            "Requests by HTTP status (499: the client left).",
            (*labels, "status"),
            registry=self.registry,
        )
        self._errors = Counter(
            "llmops_request_errors",
            "Requests that failed, also in the middle of a stream.",
            labels,
            registry=self.registry,
        )
        self._tokens = Counter("llmops_tokens", "Tokens.", (*labels, "kind"), registry=self.registry)
        self._ttft = Histogram(
            "llmops_ttft_seconds",
            "Time to the first token of streams.",
            labels,
            buckets=SECONDS,
            registry=self.registry,
        )
        self._duration = Histogram(
            "llmops_duration_seconds",
            "Time to the end of the answer.",
            labels,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("llmops_in_flight", "Requests under way.", registry=self.registry)
        self.engine_up = Gauge("llmops_engine_up", "1 while the engine answers.", registry=self.registry)
        self.route_version = Gauge(
            "llmops_route_version", "Version of the route table.", registry=self.registry
        )
        self.log_lost = Gauge(
            "llmops_request_log_lost", "Request log lines lost to a full disk.", registry=self.registry
        )
        self.usage_lost = Gauge(
            "llmops_usage_lost", "Requests whose use could not be kept.", registry=self.registry
        )
        self.refused = Counter(
            "llmops_refused",
            "Requests refused before a model was looked for: no key, a wrong role, a foreign host ...",
            ("code",),
            registry=self.registry,
        )
        self._series = cache(self._make_series)
        self._status = cache(self._requests.labels)

    def observe(self, entry: Entry) -> None:
        """Count a request that is over."""
        model = entry.model if entry.known and entry.model else "unknown"
        adapter = short(entry.answered_by) if entry.answered_by else "none"
        self._status(model, adapter, str(entry.status)).inc()
        if entry.error is not None:
            self._errors.labels(model, adapter).inc()
        series = self._series(model, adapter)
        if entry.duration_ms is not None:
            series.duration.observe(entry.duration_ms / 1000)
        if entry.ttft_ms is not None:
            series.ttft.observe(entry.ttft_ms / 1000)
        series.n_prompt.inc(entry.n_prompt_tokens or 0)
        series.n_completion.inc(entry.n_completion_tokens or 0)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)

    def _make_series(self, model: str, adapter: str) -> _Series:
        return _Series(
            self._tokens.labels(model, adapter, "prompt"),
            self._tokens.labels(model, adapter, "completion"),
            self._ttft.labels(model, adapter),
            self._duration.labels(model, adapter),
        )
