"""What recorder and response cache counted, for Prometheus: read when they are asked for, so that counting is free."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmops.serving.capture import Recorder
from llmops.serving.response_cache import ResponseCache


class CaptureCollector(Collector):
    """The figures of one gateway."""

    def __init__(self, recorder: Recorder, cache: ResponseCache | None) -> None:
        """Read from these."""
        self._recorder = recorder
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        """The figures as they are now."""
        counts = self._recorder.writer.counts
        kept = CounterMetricFamily(
            "llmops_capture", "Rows written: responses, texts, feedback.", labels=["kind"]
        )
        for kind in ("responses", "texts", "feedback"):
            kept.add_metric([kind], counts[kind])
        yield kept
        dropped = CounterMetricFamily(
            "llmops_capture_dropped", "Responses or texts that were not kept.", labels=["reason"]
        )
        for name, n in sorted(counts.items()):
            if name.startswith("dropped: "):
                dropped.add_metric([name.removeprefix("dropped: ")], n)
        yield dropped
        yield GaugeMetricFamily(
            "llmops_capture_waiting_bytes",
            "Texts that wait to be written.",
            value=self._recorder.writer.n_waiting_bytes,
        )
        if self._cache is None:
            return
        yield CounterMetricFamily(
            "llmops_response_cache_evicted", "Answers that made room for others.", value=self._cache.n_evicted
        )
        yield GaugeMetricFamily(
            "llmops_response_cache_bytes", "Memory that cached answers take.", value=self._cache.n_bytes
        )
